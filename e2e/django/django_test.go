package django

import (
	"context"
	"testing"

	"github.com/roost-run/roost/e2e/suite"
)

var tests *suite.Suite

func TestMain(m *testing.M) {
	suite.Main(m, 0, func(_ context.Context, s *suite.Suite) error {
		tests = s
		return nil
	})
}

// TestShop runs the demo's steps on a real host.
func TestShop(t *testing.T) {
	t.Parallel()
	s := New(tests.Own(t, Settings()...), tests.Source)
	defer s.Close()
	suite.Steps(t, Steps(), s)
}
