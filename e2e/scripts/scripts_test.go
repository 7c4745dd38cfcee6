// Package scripts uses the command line as a person would: each script in
// testdata is a session against one real instance that all of them share, with
// what it prints and what it says of mistakes. The language is testscript's;
// beside its commands there are:
//
//	fails CODE COMMAND...   it must end with that exit code
//	keep NAME               the last output becomes the variable NAME
//	get APP PATH [STATUS]   asks the app through the edge, until it answers with
//	                        the status if one is given; prints status and body
//	await APP ID STATE      waits until a machine is in a state
//	until PATTERN COMMAND...  runs the command again until it prints the pattern
//
// Each script has an app name of its own, $APP, whose app goes with it.
package scripts

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/e2e/suite"
	"github.com/roost-run/roost/machines"
)

// patience bounds what a script waits for.
const patience = 3 * time.Minute

const probe = "registry.localhost/probe:latest"

// sleep is what a console's machine runs.
var sleep = instance.File{Name: "bin/sleep", Link: "/app"}

var in *instance.Instance

func TestMain(m *testing.M) {
	suite.Main(m, 0, func(ctx context.Context, s *suite.Suite) (err error) {
		if in, err = s.Share(ctx, "--swap=none"); err != nil {
			return err
		}
		if err := instance.BuildArchive(ctx, "../real/probe", probe, archive(), sleep); err != nil {
			return err
		}
		_, err = in.CLI(ctx, "image", "load", archive())
		return err
	})
}

func archive() string { return filepath.Join(in.Dir, "probe.tar") }

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error { return setup(t, e) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fails": fails, "keep": keep, "get": get, "await": await, "until": until,
		},
	})
}

func setup(t *testing.T, e *testscript.Env) error {
	t.Helper()
	_, name, _ := strings.Cut(filepath.Base(e.WorkDir), "script-")
	app := "app-" + name
	// Short, for the sockets in it.
	short, err := os.MkdirTemp("/tmp", "roost-script-")
	if err != nil {
		return err
	}
	socket := "unix://" + filepath.Join(in.Run(), "api.sock")
	e.Vars = append(e.Vars,
		"PATH="+filepath.Dir(in.Binary)+string(os.PathListSeparator)+os.Getenv("PATH"), "GOCACHE="+os.Getenv("GOCACHE"),
		"HOME="+e.WorkDir, "XDG_CONFIG_HOME="+filepath.Join(e.WorkDir, "config"), "ROOST_URL="+socket,
		"APP="+app, "PROBE="+probe, "ARCHIVE="+archive(), "API="+in.API, "EDGE="+in.Edge, "DATA="+filepath.Join(in.Dir, "data"), "SHORT="+short,
	)
	e.Defer(func() {
		if err := os.RemoveAll(short); err != nil {
			t.Error(err)
		}
		err := machines.New(machines.Options{BaseURL: socket}).DeleteApp(context.WithoutCancel(t.Context()), app, true)
		if err != nil && machines.StatusOf(err) != http.StatusNotFound {
			t.Errorf("delete app %s: %v", app, err)
		}
	})
	return nil
}

func fails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: fails CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code: got %d, want %d\n%s%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func keep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keep NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 && len(args) != 3 {
		ts.Fatalf("usage: get APP PATH [STATUS]")
	}
	deadline := time.Now().Add(patience)
	for {
		status, body, err := ask(args[0], args[1])
		ts.Check(err)
		if len(args) == 3 && args[2] != strconv.Itoa(status) && time.Now().Before(deadline) {
			ts.Check(instance.Pause(context.Background(), 50*time.Millisecond))
			continue
		}
		_, err = fmt.Fprintf(ts.Stdout(), "%d\n%s\n", status, body)
		ts.Check(err)
		return
	}
}

func ask(app, path string) (status int, body []byte, err error) {
	hc := &http.Client{Timeout: instance.RequestTimeout, Transport: &http.Transport{DisableKeepAlives: true, DialContext: in.DialEdge}}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+app+".localhost"+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: await APP ID STATE")
	}
	_, err := in.AsRoot().Wait(context.Background(), args[0], args[1], machines.WaitOptions{State: machines.State(args[2])})
	ts.Check(err)
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	deadline := time.Now().Add(patience)
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no %q after %s: %v", args[0], patience, err)
		}
		ts.Check(instance.Pause(context.Background(), 50*time.Millisecond))
	}
}
