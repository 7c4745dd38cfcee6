package state

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/patience"
)

// TestHostnameIsUnique: of many apps that want a name at once, one gets it, and
// its record and the app's agree.
func TestHostnameIsUnique(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	apps := []root.AppName{"a", "b", "c", "d"}
	for _, a := range apps {
		must[int64](t)(s.CreateApp(t.Context(), root.App{Name: a, Org: "personal"}))
	}
	var g errgroup.Group
	var mu sync.Mutex
	var won []root.AppName
	for _, a := range apps {
		g.Go(func() error {
			_, err := s.PutHostname(t.Context(), root.Hostname{Name: "shop.example.com", App: a, CreatedAt: now})
			if err != nil && root.CodeOf(err) != root.CodeHostnameTaken {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, a)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(won) != 1 {
		t.Fatalf("apps with the name: got %v, want one", won)
	}
	for _, a := range apps {
		app := must[root.App](t)(s.App(t.Context(), a))
		if got, want := slices.Contains(app.Hostnames, "shop.example.com"), a == won[0]; got != want {
			t.Errorf("app %s has the name: got %t, want %t", a, got, want)
		}
	}
	if h := must[root.Hostname](t)(s.Hostname(t.Context(), "shop.example.com")); h.App != won[0] {
		t.Errorf("the name leads to %s, want %s", h.App, won[0])
	}
}

// TestHostnamesOfOrganisationsStayApart: a wildcard and the names that it
// covers belong to one organisation, or the one would serve with the
// certificate of the other.
func TestHostnamesOfOrganisationsStayApart(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), t.Context()
	for app, org := range map[root.AppName]root.OrgSlug{"one": "personal", "two": "personal", "rival": "rivals"} {
		must[int64](t)(s.CreateApp(ctx, root.App{Name: app, Org: org}))
	}
	for _, c := range []struct {
		app   root.AppName
		name  string
		taken bool
	}{
		{"one", "*.example.com", false},
		{"rival", "login.example.com", true},
		{"two", "login.example.com", false},
		{"rival", "a.login.example.com", false}, // a star stands for one label
		{"rival", "example.com", false},
		{"rival", "*.other.example.com", false},
		{"rival", "www.example.org", false},
		{"one", "*.example.org", true},
		{"rival", "*.example.org", false},
		{"rival", "www.example.org", false}, // again: it has it
	} {
		_, err := s.PutHostname(ctx, root.Hostname{Name: c.name, App: c.app})
		if taken := root.CodeOf(err) == root.CodeHostnameTaken; taken != c.taken || err != nil && !taken {
			t.Errorf("%s adds %s: got %v, want taken %t", c.app, c.name, err, c.taken)
		}
	}
	must[int64](t)(s.DeleteHostname(ctx, "one", "*.example.com"))
	if _, err := s.PutHostname(ctx, root.Hostname{Name: "shop.example.com", App: "rival"}); err != nil {
		t.Errorf("without the wildcard: %v", err)
	}
}

func TestHostnameLife(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), t.Context()
	must[int64](t)(s.EditApp(ctx, "shop", func(a *root.App) error { a.Release = 3; return nil }))
	must[int64](t)(s.PutHostname(ctx, root.Hostname{Name: "b.example.com", App: "shop", CreatedAt: now}))
	must[int64](t)(s.PutHostname(ctx, root.Hostname{Name: "a.example.com", App: "shop", CreatedAt: now}))
	// Again, with ACME: changes that, keeps the time.
	must[int64](t)(s.PutHostname(ctx, root.Hostname{Name: "a.example.com", App: "shop", ACME: true, CreatedAt: now.Add(time.Hour)}))
	if h := must[root.Hostname](t)(s.Hostname(ctx, "a.example.com")); !h.ACME || !h.CreatedAt.Equal(now) {
		t.Errorf("after the second put: got %+v, want ACME since %v", h, now)
	}
	app := must[root.App](t)(s.App(ctx, "shop"))
	if want := []string{"a.example.com", "b.example.com"}; !slices.Equal(app.Hostnames, want) || app.Release != 3 {
		t.Errorf("got %v and release %d, want %v and 3", app.Hostnames, app.Release, want)
	}
	must[int64](t)(s.PutUpload(ctx, root.Upload{Hostname: "a.example.com", Chain: "chain", Key: []byte("box"), CreatedAt: now}))
	if err := s.PutAttempt(ctx, root.CertAttempt{Hostname: "a.example.com", Failures: 2, At: now}); err != nil {
		t.Fatal(err)
	}
	must[int64](t)(s.DeleteHostname(ctx, "shop", "a.example.com"))
	if _, err := s.Upload(ctx, "a.example.com"); !root.IsKind(err, root.NotFound) {
		t.Errorf("the upload of a removed hostname: got %v, want not found", err)
	}
	if a := must[root.CertAttempt](t)(s.Attempt(ctx, "a.example.com")); a.Failures != 0 {
		t.Errorf("the attempt of a removed hostname: got %+v, want none", a)
	}
	if err := s.PutAttempt(ctx, root.CertAttempt{Hostname: "a.example.com", Failures: 2}); err != nil {
		t.Errorf("an attempt that ends after the removal: got %v, want nothing noted", err)
	}
	if a := must[root.CertAttempt](t)(s.Attempt(ctx, "a.example.com")); a.Failures != 0 {
		t.Error("an attempt was noted for a hostname that is gone")
	}
	if _, err := s.DeleteHostname(ctx, "shop", "a.example.com"); !root.IsKind(err, root.NotFound) {
		t.Errorf("removing twice: got %v, want not found", err)
	}
	if _, err := s.PutUpload(ctx, root.Upload{Hostname: "a.example.com"}); !root.IsKind(err, root.NotFound) {
		t.Errorf("upload without hostname: got %v, want not found", err)
	}
}

func TestWatchCertificates(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), t.Context()
	seen := make(chan []string, 100)
	enough := errors.New("enough")
	done := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		done <- s.WatchCertificates(ctx, func(names []string) error {
			select {
			case <-stop:
				return enough
			default:
			}
			seen <- names
			return nil
		})
	}()
	next := func() []string {
		t.Helper()
		select {
		case names := <-seen:
			return names
		case err := <-done:
			t.Fatalf("the watch ended: %v", err)
		case <-time.After(patience.Limit):
			t.Fatal("no news")
		}
		return nil
	}
	if got := next(); got != nil {
		t.Errorf("at first: got %v, want all", got)
	}
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"a.example.com", func() error {
			_, err := s.PutHostname(ctx, root.Hostname{Name: "a.example.com", App: "shop"})
			return err
		}},
		{"a.example.com", func() error { _, err := s.PutUpload(ctx, root.Upload{Hostname: "a.example.com"}); return err }},
		{"b.example.com", func() error {
			return s.PutACME(ctx, ACMEFile{Key: "certificates/ca.example-dir/b.example.com/b.example.com.crt", Modified: now})
		}},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if got := next(); !slices.Equal(got, []string{c.name}) {
			t.Errorf("got %v, want %s", got, c.name)
		}
	}
	close(stop)
	must[int64](t)(s.DeleteHostname(ctx, "shop", "a.example.com"))
	if err := <-done; !errors.Is(err, enough) {
		t.Errorf("got %v, want the function's own error", err)
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), t.Context()
	one, two := LockHolder{"5e1f00aa", "run1"}, LockHolder{"5e1f00bb", "run1"}
	lock := func(h LockHolder, at time.Time, want bool) {
		t.Helper()
		got, err := s.TryLock(ctx, "x", h, at, at.Add(time.Minute))
		if err != nil || got != want {
			t.Errorf("%v: got %t, %v; want %t", h, got, err, want)
		}
	}
	lock(one, now, true)
	lock(one, now, false) // held, if by the same run
	lock(two, now, false)
	lock(two, now.Add(2*time.Minute), true) // its time was over
	if err := s.Unlock(ctx, "x", one); err != nil {
		t.Fatal(err)
	}
	lock(one, now.Add(2*time.Minute), false) // unlocking what another holds does nothing
	if err := s.Unlock(ctx, "x", two); err != nil {
		t.Fatal(err)
	}
	lock(one, now, true)
	lock(LockHolder{"5e1f00aa", "run2"}, now, true) // the next run of the same host
}

func TestACMEFiles(t *testing.T) {
	t.Parallel()
	s, ctx := newStore(t), t.Context()
	for _, k := range []string{"a/b/c", "a/b/d", "a/bb", "e"} {
		if err := s.PutACME(ctx, ACMEFile{Key: k, Value: []byte(k), Modified: now}); err != nil {
			t.Fatal(err)
		}
	}
	if got := must[[]string](t)(s.ACMEKeys(ctx, "a/b")); !slices.Equal(got, []string{"a/b/c", "a/b/d"}) {
		t.Errorf("below a/b: got %v", got)
	}
	if got := must[[]string](t)(s.ACMEKeys(ctx, "")); len(got) != 4 {
		t.Errorf("all: got %v", got)
	}
	if f := must[ACMEFile](t)(s.ACME(ctx, "a/bb")); string(f.Value) != "a/bb" || !f.Modified.Equal(now) {
		t.Errorf("got %+v", f)
	}
	if err := s.DeleteACME(ctx, "a/b"); err != nil {
		t.Fatal(err)
	}
	if got := must[[]string](t)(s.ACMEKeys(ctx, "")); !slices.Equal(got, []string{"a/bb", "e"}) {
		t.Errorf("after removing a/b: got %v", got)
	}
	if _, err := s.ACME(ctx, "a/b/c"); !root.IsKind(err, root.NotFound) {
		t.Errorf("removed: got %v, want not found", err)
	}
}
