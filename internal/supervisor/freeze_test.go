package supervisor

import (
	"fmt"
	"testing"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/patience"
)

// TestSuspendRightAfterTheStart: the first process may still be on its way
// from the runtime to the app.
func TestSuspendRightAfterTheStart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	for i := range 5 {
		id := root.InstanceID(fmt.Sprintf("01%d", i))
		h.started(id, "sleep")
		if _, err := h.client.Suspend(patience.Context(t), id, orders.Suspend{}); err != nil {
			t.Fatal(err)
		}
	}
}
