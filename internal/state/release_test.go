package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/etcd/etcdtest"
	"github.com/roost-run/roost/internal/patience"
)

// oneRelease is a store with an app whose first rollout is under way.
func oneRelease(t *testing.T) (*Store, root.Release) {
	t.Helper()
	s := New(etcdtest.New(t))
	must[int64](t)(s.CreateApp(t.Context(), root.App{Name: "shop", Org: "personal"}))
	r, _, err := s.CreateRelease(t.Context(), root.Release{ID: "R1", App: "shop", Progress: root.Progress{Status: root.ReleasePending}})
	if err != nil || r.Version != 1 {
		t.Fatalf("first release: got v%d, %v", r.Version, err)
	}
	return s, r
}

func TestReleasesAreNumbered(t *testing.T) {
	s, _ := oneRelease(t)
	ctx := t.Context()
	_, _, err := s.CreateRelease(ctx, root.Release{ID: "R2", App: "shop"})
	if !root.IsKind(err, root.Conflict) || root.CodeOf(err) != root.CodeReleaseRunning {
		t.Errorf("a second rollout: got %v, want release_in_progress", err)
	}
	if _, _, err := s.CreateRelease(ctx, root.Release{ID: "R2", App: "nobody"}); !root.IsKind(err, root.NotFound) {
		t.Errorf("app that is not there: got %v", err)
	}
	finish := func(version int) {
		t.Helper()
		j := root.Rollout{App: "shop", Version: version}
		err := s.HoldRollout(ctx, "shop", "h1", func(ctx context.Context) error {
			_, err := s.FinishRollout(ctx, "h1", j, root.Progress{Status: root.ReleaseComplete}, root.ReleaseEvent{ID: "E9", End: true}, false)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	finish(1)
	for v := 2; v <= 12; v++ {
		r, _, err := s.CreateRelease(ctx, root.Release{ID: root.ReleaseID(fmt.Sprint("R", v)), App: "shop"})
		if err != nil || r.Version != v {
			t.Fatalf("got v%d, %v, want v%d", r.Version, err, v)
		}
		finish(v)
	}
	removed, err := s.TrimReleases(ctx, "shop", 3, 2)
	if want := []int{1, 3, 4, 5, 6, 7, 8, 9}; err != nil || !slices.Equal(removed, want) {
		t.Errorf("trimmed: got %v, %v, want %v", removed, err, want)
	}
	list, err := s.Releases(ctx, "shop")
	var versions []int
	for _, r := range list {
		versions = append(versions, r.Version)
		if r.Progress.Status != root.ReleaseComplete {
			t.Errorf("v%d: got %q", r.Version, r.Progress.Status)
		}
	}
	if want := []int{12, 11, 10, 2}; err != nil || !slices.Equal(versions, want) {
		t.Errorf("releases: got %v, %v, want %v", versions, err, want)
	}
	must[int64](t)(s.DeleteApp(ctx, "shop"))
	if list, err := s.Releases(ctx, "shop"); err != nil || len(list) != 0 {
		t.Errorf("after the app: got %d releases, %v", len(list), err)
	}
}

func TestRolloutHasOneOwner(t *testing.T) {
	s, r := oneRelease(t)
	ctx := t.Context()
	j := root.Rollout{App: "shop", Version: 1, Done: []string{"release_command"}}
	if _, err := s.SaveRollout(ctx, "h1", j); !root.IsKind(err, root.Conflict) {
		t.Errorf("save without ownership: got %v", err)
	}
	stop := errors.New("stop")
	err := s.HoldRollout(ctx, "shop", "h1", func(ctx context.Context) error {
		if err := s.HoldRollout(ctx, "shop", "h2", func(context.Context) error { return nil }); !root.IsKind(err, root.Conflict) {
			t.Errorf("another host: got %v, want conflict", err)
		}
		if _, err := s.SaveRollout(ctx, "h2", j); !root.IsKind(err, root.Conflict) {
			t.Errorf("save by another host: got %v, want conflict", err)
		}
		must[int64](t)(s.SaveRollout(ctx, "h1", j))
		return stop
	})
	if !errors.Is(err, stop) {
		t.Errorf("got %v, want the function's error", err)
	}
	all, err := s.Rollouts(ctx)
	if diff := cmp.Diff([]root.Rollout{j}, all); err != nil || diff != "" {
		t.Errorf("rollouts: %v (-want +got):\n%s", err, diff)
	}
	// The host's next process need not wait.
	m := root.Machine{ID: "00000000000001", App: "shop", Status: root.Status{State: root.StateSuspended}, Spec: root.Spec{Release: 7}}
	err = s.HoldRollout(ctx, "shop", "h1", func(ctx context.Context) error {
		if err := s.RememberMachine(ctx, "h1", &m); err != nil {
			return err
		}
		later := m
		later.Spec.Release = 8
		if err := s.RememberMachine(ctx, "h1", &later); err != nil {
			return err
		}
		next := j
		next.Shifted = true
		_, err := s.ShiftRollout(ctx, "h1", next, func(a *root.App) { a.Release = r.Version })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	were, err := s.RememberedMachines(ctx, "shop")
	if got := were[m.ID]; err != nil || got == nil || got.Spec.Release != 7 || got.Status.State != root.StateSuspended {
		t.Errorf("remembered: got %+v, %v, want what it was first", got, err)
	}
	if app := must[root.App](t)(s.App(ctx, "shop")); app.Release != 1 {
		t.Errorf("current release: got v%d", app.Release)
	}
	if err := s.CancelRollout(ctx, "shop", 2, "eve"); !root.IsKind(err, root.NotFound) {
		t.Errorf("cancel of another: got %v", err)
	}
	if err := s.HoldRollout(ctx, "nobody", "h1", func(context.Context) error { return nil }); !root.IsKind(err, root.NotFound) {
		t.Errorf("no rollout: got %v", err)
	}
}

func TestReleaseEventsAreFollowed(t *testing.T) {
	s, _ := oneRelease(t)
	ctx := patience.Context(t)
	add := func(id string) {
		t.Helper()
		if err := s.AddReleaseEvent(ctx, "shop", 1, root.ReleaseEvent{ID: id, Message: id}); err != nil {
			t.Fatal(err)
		}
	}
	add("E1")
	add("E2")
	var got []string
	enough := errors.New("enough")
	err := s.ReleaseEvents(ctx, "shop", 1, "E1", true, func(e root.ReleaseEvent) error {
		got = append(got, e.ID)
		switch e.ID {
		case "E2":
			add("E3") // comes over the watch
		case "E3":
			return enough
		}
		return nil
	})
	if want := []string{"E2", "E3"}; !errors.Is(err, enough) || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if err := s.AddReleaseEvent(ctx, "shop", 2, root.ReleaseEvent{ID: "E1"}); !root.IsKind(err, root.NotFound) {
		t.Errorf("event of no release: got %v", err)
	}
}

// A journal that this version cannot read does not hold up other apps'.
func TestUnreadableRolloutIsSkipped(t *testing.T) {
	s, _ := oneRelease(t)
	if _, err := s.client.Put(t.Context(), journalKey("future"), `{"v":99}`); err != nil {
		t.Fatal(err)
	}
	all, err := s.Rollouts(t.Context())
	if err != nil || len(all) != 1 || all[0].App != "shop" {
		t.Errorf("got %+v, %v, want the one of shop", all, err)
	}
}

// Whoever cancels first or shifts first wins, and the other is told.
func TestCancelOrShift(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		t.Run(fmt.Sprintf("cancelled=%v", cancelled), func(t *testing.T) {
			s, r := oneRelease(t)
			ctx := t.Context()
			err := s.HoldRollout(ctx, "shop", "h1", func(ctx context.Context) error {
				if cancelled {
					if err := s.CancelRollout(ctx, "shop", 1, "eve"); err != nil {
						t.Error(err)
					}
					if by := must[string](t)(s.Cancelled(ctx, "shop")); by != "eve" {
						t.Errorf("cancelled by: got %q", by)
					}
				}
				_, err := s.ShiftRollout(ctx, "h1", root.Rollout{App: "shop", Version: 1, Shifted: true}, func(a *root.App) { a.Release = r.Version })
				return err
			})
			if got := root.CodeOf(err); cancelled != (got == root.CodeReleaseCancelled) || !cancelled && err != nil {
				t.Errorf("shift: got %v", err)
			}
			if app := must[root.App](t)(s.App(ctx, "shop")); (app.Release == 0) != cancelled {
				t.Errorf("current release: got v%d", app.Release)
			}
			if !cancelled {
				if err := s.CancelRollout(ctx, "shop", 1, "eve"); root.CodeOf(err) != root.CodeReleaseServes || !root.IsKind(err, root.Precondition) {
					t.Errorf("cancel after the shift: got %v", err)
				}
			}
		})
	}
}

func TestWebhooksAreLeftToTheHost(t *testing.T) {
	s, _ := oneRelease(t)
	ctx := t.Context()
	err := s.HoldRollout(ctx, "shop", "h1", func(ctx context.Context) error {
		_, err := s.FinishRollout(ctx, "h1", root.Rollout{App: "shop", Version: 1}, root.Progress{Status: root.ReleaseComplete}, root.ReleaseEvent{ID: "E1", End: true}, true)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if other, err := s.Webhooks(ctx, "h2"); err != nil || len(other) != 0 {
		t.Errorf("another host: got %v, %v", other, err)
	}
	all, err := s.Webhooks(ctx, "h1")
	if want := []Webhook{{"shop", 1}}; err != nil || !slices.Equal(all, want) {
		t.Fatalf("got %v, %v, want %v", all, err, want)
	}
	if err := s.WebhookDone(ctx, all[0], root.ReleaseEvent{ID: "E2", Message: "told"}); err != nil {
		t.Fatal(err)
	}
	if err := s.WebhookDone(ctx, Webhook{"nobody", 1}, root.ReleaseEvent{ID: "E2"}); err != nil {
		t.Errorf("of an app that is gone: %v", err)
	}
	if all, err := s.Webhooks(ctx, "h1"); err != nil || len(all) != 0 {
		t.Errorf("when it is told: got %v, %v", all, err)
	}
	last := ""
	err = s.ReleaseEvents(ctx, "shop", 1, "", false, func(e root.ReleaseEvent) error { last = e.Message; return nil })
	if err != nil || last != "told" {
		t.Errorf("last event: got %q, %v", last, err)
	}
}

// The next app of that name has a version 1, too, and nothing to tell of it.
func TestWebhooksGoWithTheApp(t *testing.T) {
	s, _ := oneRelease(t)
	ctx := t.Context()
	err := s.HoldRollout(ctx, "shop", "h1", func(ctx context.Context) error {
		_, err := s.FinishRollout(ctx, "h1", root.Rollout{App: "shop", Version: 1}, root.Progress{Status: root.ReleaseComplete}, root.ReleaseEvent{ID: "E1", End: true}, true)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	must[int64](t)(s.DeleteApp(ctx, "shop"))
	if all, err := s.Webhooks(ctx, "h1"); err != nil || len(all) != 0 {
		t.Errorf("webhooks of an app that is gone: got %v, %v", all, err)
	}
}
