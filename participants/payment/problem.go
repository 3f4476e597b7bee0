package payment

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/lockstep-tx/lockstep/participants/barrier"
	"github.com/lockstep-tx/lockstep/participants/inventory"
)

// Problem is a refusal as RFC 9457 writes it (application/problem+json). Type is /problems/ and the reason.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Field  string `json:"field,omitempty"`   // of the request that it is about
	Ref    string `json:"payment,omitempty"` // the payment or order that stays known
}

func (p *Problem) Error() string { return fmt.Sprintf("%s (field %s): %s", p.Title, p.Field, p.Detail) }

func problem(reason, field, detail string) *Problem {
	k, ok := kinds[reason]
	if !ok {
		if detail == "" {
			detail = reason
		}
		k = kind{"The payment was refused", http.StatusUnprocessableEntity, ""}
		reason = "refused"
	}
	if field == "" {
		field = k.field
	}
	return &Problem{Type: "/problems/" + reason, Title: k.title, Status: k.status, Detail: detail, Field: field}
}

func invalid(field, detail string) *Problem { return problem("invalid", field, detail) }

type kind struct {
	title  string
	status int
	field  string // of a payment's request
}

// kinds are the reasons: the participants' and this service's.
var kinds = map[string]kind{
	"invalid":                {"The request is not complete or not possible", http.StatusBadRequest, ""},
	"not_found":              {"There is no such thing", http.StatusNotFound, ""},
	"insufficient_funds":     {"The buyer has not enough money", http.StatusUnprocessableEntity, "amount"},
	"no_account":             {"There is no such buyer", http.StatusUnprocessableEntity, "buyer"},
	"account_frozen":         {"The buyer's account is frozen", http.StatusUnprocessableEntity, "buyer"},
	"account_closed":         {"The buyer's account is closed", http.StatusUnprocessableEntity, "buyer"},
	"debit_cap":              {"The buyer's account has reached its limit", http.StatusUnprocessableEntity, "amount"},
	"wrong_currency":         {"The account is in another currency", http.StatusUnprocessableEntity, "currency"},
	"no_merchant":            {"There is no such merchant", http.StatusUnprocessableEntity, "merchant"},
	"merchant_funds":         {"The merchant has not so much to give back", http.StatusUnprocessableEntity, "amount"},
	"stock_gone":             {"There is not enough in stock", http.StatusUnprocessableEntity, "items"},
	"no_article":             {"There is no such article", http.StatusUnprocessableEntity, "items"},
	"order_gone":             {"The order has lapsed, was cancelled, or is being paid", http.StatusUnprocessableEntity, "order"},
	"refund_exceeds_payment": {"The refunds would exceed the payment", http.StatusUnprocessableEntity, "amount"},
	"no_payment":             {"There is no payment that takes this refund", http.StatusConflict, ""},
	"reversed":               {"The payment was reversed", http.StatusConflict, ""},
	"forgotten":              {"The payment was refused; why is no longer known", http.StatusUnprocessableEntity, ""},
	"not_paid":               {"The payment is not paid", http.StatusConflict, ""},
	"duplicate_order":        {"The order is being paid or was paid by another request", http.StatusConflict, "order_no"},
	"duplicate_refund":       {"The refund was made with another request", http.StatusConflict, "refund_no"},
	"key_reused":             {"The idempotency key belongs to another request", http.StatusConflict, "Idempotency-Key"},
	"order_taken":            {"The order is being paid or was paid", http.StatusConflict, ""},
}

// refusalText is how the participants word a refusal: the reason first, the field last. Before it may stand whatever a
// coordinator and a protocol add.
var refusalText, refusalWord = regexp.MustCompile(`[^()]*\(field [a-z_]+\)`), regexp.MustCompile(`\b[a-z]+(?:_[a-z]+)*\b`)

// reasonOf finds a refusal's reason in what the coordinator tells of it. The field is the payment's, which is not always
// the participant's. Of a text that nobody knows, what names addresses inside is left out.
func reasonOf(text string) (reason, field string) {
	text = message(text)
	for _, refusal := range refusalText.FindAllString(text, -1) {
		for _, word := range refusalWord.FindAllString(refusal, -1) {
			if k, ok := kinds[word]; ok && k.status != http.StatusBadRequest { // the others are words as well
				return word, k.field
			}
		}
	}
	return strings.TrimSpace(addresses.ReplaceAllString(text, "")), ""
}

// addresses are URLs, and host:port as gRPC has them, with what DTM's wording puts around them.
var addresses = regexp.MustCompile(`(url:)?\S*://\S+( return failed:)?|\S+:[0-9]+/\S*`)

// message is the text in the participant's answer where the whole answer is told, as of a call that went by itself.
func message(text string) string {
	at := strings.IndexByte(text, '{')
	if at < 0 {
		return text
	}
	var answer struct {
		Message string `json:"message"`
	}
	if err := json.NewDecoder(strings.NewReader(text[at:])).Decode(&answer); err != nil || answer.Message == "" {
		return text
	}
	return answer.Message
}

// problemOf is the answer to a refused payment or refund.
func problemOf(reason, field, detail, ref string) *Problem {
	if detail == reason {
		detail = "" // the title says it
	}
	p := problem(reason, field, detail)
	p.Ref = ref
	return p
}

// stockProblem is the answer to a refused order.
func stockProblem(err error) error {
	var no *inventory.Refusal
	switch {
	case errors.As(err, &no):
		return problem(no.Reason, "", no.About)
	case errors.Is(err, barrier.ErrInvalid):
		return invalid("items", err.Error())
	}
	return err
}
