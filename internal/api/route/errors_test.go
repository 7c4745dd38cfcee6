package route

import (
	"context"
	"errors"
	"fmt"
	"testing"

	root "github.com/roost-run/roost"
)

func TestRender(t *testing.T) {
	coded := func(kind root.Kind, code string) error { return &root.Error{Kind: kind, Code: code, Message: "m"} }
	tests := map[string]struct {
		err    error
		status int
		want   Failure
	}{
		"invalid":         {root.Errorf(root.Invalid, "m"), 400, Failure{Error: "m"}},
		"unauthenticated": {coded(root.Unauthenticated, "token_expired"), 401, Failure{Error: "m"}},
		"forbidden":       {root.Errorf(root.Forbidden, "m"), 403, Failure{Error: "m"}},
		"not found":       {root.Errorf(root.NotFound, "m"), 404, Failure{Error: "m"}},
		"conflict":        {coded(root.Conflict, "machine_name_taken"), 409, Failure{Error: "m", Status: "machine_name_taken"}},
		"app name taken":  {coded(root.Conflict, root.CodeNameTaken), 422, Failure{Error: "m", Status: "name_taken"}},
		"lease held":      {coded(root.Conflict, root.CodeLeaseHeld), 409, Failure{Error: "m", Message: "m", Status: "error", Code: "invalid"}},
		"precondition":    {root.Errorf(root.Precondition, "m"), 412, Failure{Error: "failed_precondition: m"}},
		"exhausted":       {coded(root.Exhausted, "insufficient_capacity"), 422, Failure{Error: "m", Status: "insufficient_capacity"}},
		"rate limited":    {coded(root.Exhausted, CodeRateLimited), 429, Failure{Error: "m", Status: "rate_limited"}},
		"unavailable":     {root.Errorf(root.Unavailable, "m"), 503, Failure{Error: "m"}},
		"unimplemented":   {root.Errorf(root.Unimplemented, "m"), 501, Failure{Error: "m"}},
		"unsupported":     {coded(root.Unimplemented, root.CodeUnsupported), 422, Failure{Error: "m", Status: "unsupported_field"}},
		"timeout":         {root.Errorf(root.Timeout, "m"), 408, Failure{Error: "deadline_exceeded: m"}},
		"too large":       {root.Errorf(root.TooLarge, "m"), 413, Failure{Error: "m"}},
		"a deadline":      {fmt.Errorf("x: %w", context.DeadlineExceeded), 408, Failure{Error: "deadline_exceeded: the platform did not finish in time; the action may have happened"}},
		"wrapped":         {fmt.Errorf("stop machine: %w", root.Errorf(root.NotFound, "m")), 404, Failure{Error: "m"}},
		"ours":            {errors.New("disk /dev/sda is on fire"), 500, Failure{Error: "internal error", Status: "unknown"}},
		"ours, with text": {&root.Error{Kind: root.Internal, Message: "disk is on fire"}, 500, Failure{Error: "internal error", Status: "unknown"}},
	}
	seen := make(map[root.Kind]bool)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status, got := Render(tt.err)
			if status != tt.status || got != tt.want {
				t.Errorf("got %d %+v, want %d %+v", status, got, tt.status, tt.want)
			}
		})
		seen[root.KindOf(tt.err)] = true
	}
	for kind := root.Internal; root.ParseKind(kind.String()) == kind; kind++ {
		if !seen[kind] {
			t.Errorf("kind %s has no status: add it to status and here", kind)
		}
	}
}
