package payment

import "testing"

// A refusal is understood in whatever it comes: as the participant words it, in the answer to a single call over HTTP or
// gRPC, and beside another's that says nothing.
func TestReasonOfARefusal(t *testing.T) {
	for text, want := range map[string][2]string{
		"account_frozen alice (field debit)":                                         {"account_frozen", "buyer"},
		"account_closed alice (field debit)":                                         {"account_closed", "buyer"},
		"FAILURE: insufficient_funds alice: 1 available, 2 asked for (field amount)": {"insufficient_funds", "amount"},
		`url:http://127.0.0.1:1/leg/try return failed: {"dtm_result":"FAILURE","message":"account_frozen frozen (field debit)"}`:                              {"account_frozen", "buyer"},
		`http://some_host/no_such/try: {"dtm_result":"FAILURE","message":"stock_gone book (field items)"}`:                                                    {"stock_gone", "items"},
		"some_thing else (field x); wrong_currency alice: it is in EUR, not CNY (field currency)":                                                             {"wrong_currency", "currency"},
		`url:http://127.0.0.1:1/x/try return failed: {"dtm_result":"FAILURE","message":"wrong_currency \u0022a\u0022: \"it\" is so (field currency)"}` + "\n": {"wrong_currency", "currency"},
		`url:http://10.0.0.7:8080/x/try return failed: {"dtm_result":"FAILURE","message":"nobody is at home"}`:                                                {"nobody is at home", ""},
		`url:http://10.0.0.7:8080/x/try return failed: closed today`:                                                                                          {"closed today", ""},
		`10.0.0.7:8080/shop.Stock/Try closed today`:                                                                                                           {"closed today", ""},
		"no_payment: payment g:buyer: it is voided (field refund_of)":                                                                                         {"no_payment", ""},
		"reversed: payment g:buyer: it is reversed (field refund_of)":                                                                                         {"reversed", ""},
		"account_frozen without more":            {"account_frozen without more", ""},
		"some_thing that nobody knows (field x)": {"some_thing that nobody knows (field x)", ""},
		"":                                       {"", ""},
	} {
		if reason, field := reasonOf(text); reason != want[0] || field != want[1] {
			t.Errorf("%q: %q in field %q, want %q", text, reason, field, want)
		}
	}
}
