package e2e

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-tx/lockstep/participants/sqldb"
)

// The participants' program comes back at another address, with a payment that was decided and not booked before it died.
// The payment ends as it was decided, for its repeat and by itself, and takes a refund (G1).
func TestAPaymentSurvivesThatItsParticipantsMove(t *testing.T) {
	dir := t.TempDir()
	c := embedded(t)
	s := newShop(t, c, "sqlite:"+dir)
	s.stock(1)
	paid := []answer{s.must("POST", "/v1/payments", order("1", nil), 200), s.must("POST", "/v1/payments", order("2", nil), 200)}
	s.settled(2, 2)
	s.kill()
	db, _, err := sqldb.Open(t.Context(), "sqlite:"+filepath.Join(dir, "merchant.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE payment SET state = 'processing', decided_ms = 0"); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range s.args {
		if strings.HasPrefix(s.base, "http://"+a) {
			s.args[i] = l.Addr().String()
		}
	}
	s.base = "http://" + l.Addr().String()
	l.Close()
	s.restart()
	if again := s.must("POST", "/v1/payments", order("1", nil), 200); again.Gid != paid[0].Gid {
		t.Errorf("the repeat is another payment: %+v, before %+v", again, paid[0])
	}
	eventually(t, 30*time.Second, "the other payment is booked as it was decided", func() bool {
		return s.must("GET", "/v1/payments/"+paid[1].ID, nil, 200).State == "paid"
	})
	s.must("POST", "/v1/payments/"+paid[0].ID+"/refunds", m{"refund_no": "r1", "amount": 60}, 200)
	if got := s.settled(2, 2); got.Merchant.Posted != 200 || got.Merchant.Refunded != 60 {
		t.Errorf("two payments of 100 and a refund of 60: %+v", got)
	}
}
