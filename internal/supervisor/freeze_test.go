package supervisor

import (
	"fmt"
	"testing"
	"time"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/orders"
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
		begin := time.Now()
		if _, err := h.client.Suspend(t.Context(), id, orders.Suspend{}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("suspend took %v", took)
		}
	}
}
