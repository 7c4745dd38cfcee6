package controlplane

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestApart: however a client writes the path, what the edge passes on for it
// never reaches the platform's own handlers.
func TestApart(t *testing.T) {
	say := func(what string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, what) })
	}
	h := apart(say("internal"), say("public"))
	for _, path := range []string{"/internal/certs", "/%69nternal/certs", "//internal/certs", "/x/../internal/certs", "/v1/apps"} {
		for _, c := range []struct {
			front []string
			want  string
		}{
			{nil, "internal"},
			{[]string{"api-sock"}, "public"}, {[]string{"machine"}, "public"}, {[]string{"internal"}, "public"},
			{[]string{"api"}, "public"}, {[]string{""}, "public"},
		} {
			r := httptest.NewRequest(http.MethodGet, "http://control"+path, nil)
			if c.front != nil {
				r.Header["Roost-Front"] = c.front
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if got := w.Body.String(); got != c.want {
				t.Errorf("%s with front %q: got the %s handler, want the %s one", path, c.front, got, c.want)
			}
		}
	}
}
