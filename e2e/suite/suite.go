// Package suite is what the tests on real machines have in common: a test
// binary that needs root, takes its instances from one place, and leaves the
// host as it was. What the instances run is the tests' own.
package suite

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/roost-run/roost/e2e/instance"
)

// Suite is one test binary.
type Suite struct {
	Binary string // of roost: bin/roost, or what E2E_BINARY names
	Source string // the module's directory
	Dir    string // for what the tests make once; it goes at the end

	before instance.HostState
	shared *instance.Instance
	guard  *guard

	mu    sync.Mutex // guards marks
	marks []string   // what the instances leave on the host while they run
}

// Main is TestMain: it makes ready what the tests share, runs them, so many at
// once unless -parallel says so (0: Go's own number), and compares the host
// with what it was. Tests are in a package two levels below the module.
func Main(m *testing.M, parallel int, ready func(ctx context.Context, s *Suite) error) {
	if os.Getenv(guardVariable) != "" {
		if err := keepGuard(context.Background(), os.Stdin, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); parallel > 0 && f.Value.String() == f.DefValue {
		if err := f.Value.Set(strconv.Itoa(parallel)); err != nil {
			panic(err)
		}
	}
	code, err := run(context.Background(), m, ready)
	if err != nil {
		fmt.Fprintln(os.Stderr, "the test binary failed:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, m *testing.M, ready func(ctx context.Context, s *Suite) error) (code int, err error) {
	s := &Suite{}
	defer func() { err = errors.Join(err, s.close(ctx, err == nil && code == 0)) }()
	defer watchTime().Stop()
	if err := s.open(ctx); err != nil {
		return 1, err
	}
	if err := ready(ctx, s); err != nil {
		return 1, err
	}
	code = m.Run()
	if code != 0 && s.shared != nil {
		fmt.Fprintf(os.Stderr, "the platform's last words:\n%s\n", s.shared.LogTail(lastWords))
	}
	return code, nil
}

// lastWords is how many lines of the platform's log are shown after a failure.
const lastWords = 30

func (s *Suite) open(ctx context.Context) (err error) {
	if os.Getuid() != 0 {
		return errors.New("these tests need root: machines need namespaces, mounts and control groups")
	}
	if s.Source, err = filepath.Abs("../.."); err != nil {
		return err
	}
	// E2E_ROOST is the former name.
	if s.Binary, err = filepath.Abs(cmp.Or(os.Getenv("E2E_BINARY"), os.Getenv("E2E_ROOST"), filepath.Join(s.Source, "bin", "roost"))); err != nil {
		return err
	}
	if s.before, err = instance.ReadHost(ctx); err != nil {
		return err
	}
	if s.guard, err = startGuard(); err != nil {
		return err
	}
	if s.Dir, err = os.MkdirTemp("", "suite-"); err != nil {
		return err
	}
	return s.guard.tell(order{Dir: s.Dir})
}

// close ends the shared instance. After tests that failed the host may be
// anything; they have said what is wrong.
func (s *Suite) close(ctx context.Context, compare bool) error {
	var err error
	if s.shared != nil {
		err = s.end(ctx, s.shared)
	}
	if s.Dir != "" {
		err = errors.Join(err, os.RemoveAll(s.Dir))
	}
	if s.guard != nil {
		err = errors.Join(err, s.guard.end())
	}
	if err != nil || !compare {
		return err
	}
	return instance.CheckRestored(ctx, s.before, s.marks, s.marks...)
}

// Share starts the instance that all tests of the binary share.
func (s *Suite) Share(ctx context.Context, settings ...string) (*instance.Instance, error) {
	in, err := s.start(ctx, settings...)
	s.shared = in
	return in, err
}

// Own starts an instance that goes with the test.
func (s *Suite) Own(t *testing.T, settings ...string) *instance.Instance {
	t.Helper()
	in, err := s.start(t.Context(), settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the platform's last words:\n%s", in.LogTail(lastWords))
		}
		if err := s.end(context.WithoutCancel(t.Context()), in); err != nil {
			t.Error(err)
		}
	})
	return in
}

func (s *Suite) start(ctx context.Context, settings ...string) (*instance.Instance, error) {
	in, err := instance.New(s.Binary, settings...)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.marks = append(s.marks, in.Marks()...)
	s.mu.Unlock()
	handle := in.Handle()
	if err := s.guard.tell(order{Instance: &handle}); err != nil {
		return nil, errors.Join(err, in.Close(ctx))
	}
	if err := in.Open(ctx); err != nil {
		return nil, err // and has closed it
	}
	return in, nil
}

// end closes an instance.
func (s *Suite) end(ctx context.Context, in *instance.Instance) error {
	if err := in.Close(ctx); err != nil {
		return err // the guard tries again
	}
	handle := in.Handle()
	return s.guard.tell(order{Instance: &handle, Done: true})
}

// Steps runs a story, a subtest for each step. They build on each other: the
// first that fails is the last.
func Steps[S any](t *testing.T, steps []instance.Step[S], state S) {
	t.Helper()
	for _, step := range steps {
		ok := t.Run(step.Name, func(t *testing.T) {
			seen, err := step.Run(t.Context(), state)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(seen)
		})
		if !ok {
			return
		}
	}
}

// Eventually polls until look says that nothing more is missing.
func Eventually(t *testing.T, patience time.Duration, look func() (missing string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		missing := look()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %s", patience, missing)
		}
		if err := instance.Pause(t.Context(), 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}
