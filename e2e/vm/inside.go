package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	share = "/share"
	tree  = "/root/tree" // as the tests expect it around them

	okMark   = "ok    "
	failMark = "FAIL  "
	noteMark = "      "
	endMark  = "roost-vm: end of phase"
)

// inside runs the phase that the kernel's command line names.
func inside() int {
	// A writer to a serial line that nobody configured gets its lines mangled.
	_ = exec.Command("stty", "-F", "/dev/ttyS1", "raw", "-echo").Run() // cosmetic
	ctx := context.Background()
	data, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		fmt.Println(failMark, err)
		return 1
	}
	option := map[string]string{}
	for word := range strings.FieldsSeq(string(data)) {
		key, value, _ := strings.Cut(word, "=")
		option[key] = value
	}
	switch phase := option["roost.phase"]; phase {
	case phaseTests:
		runTests(ctx, option["roost.run"])
	case phaseService:
		runService(ctx, option["roost.run"])
	case phaseReboot, phaseCut:
		runStart(ctx)
	default:
		fmt.Printf("%sthere is no phase %q\n", failMark, phase)
	}
	fmt.Println(endMark)
	if option["roost.phase"] == phaseReboot {
		// What a power cut leaves: nothing is told, nothing written back but
		// what was synced.
		if err := os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0); err != nil {
			fmt.Println(failMark, err)
		}
	}
	return 0
}

// handOut stands in for `go build -o FILE ... PACKAGE`.
func handOut(args []string) int {
	at := slices.Index(args, "-o")
	if len(args) == 0 || args[0] != "build" || at < 0 || at+1 >= len(args) {
		fmt.Fprintln(os.Stderr, "this host has no Go; only the tests' own programs can be had")
		return 1
	}
	program := filepath.Base(args[len(args)-1])
	if programs[program] == "" {
		fmt.Fprintln(os.Stderr, "not built on the outside:", args[len(args)-1])
		return 1
	}
	if err := copyFile(filepath.Join(share, "programs", program), args[at+1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// copyFile puts a new file in place, also of a program that runs.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// testTimeout is for one test binary: emulation is ten times slower, and the host may be busy.
const testTimeout = 30 * time.Minute

func runTests(ctx context.Context, name string) {
	if err := os.CopyFS(tree, os.DirFS(filepath.Join(share, "tree"))); err != nil {
		fmt.Println(failMark, err)
		return
	}
	describe()
	for _, t := range tests {
		if chosen(t.pkg, name) {
			runTest(ctx, t.pkg, t.run)
		}
	}
}

// chosen reports whether a name has one of the words, which commas separate;
// no words choose everything.
func chosen(name, words string) bool {
	return slices.ContainsFunc(strings.Split(words, ","), func(word string) bool { return strings.Contains(name, word) })
}

func runTest(ctx context.Context, pkg, pattern string) {
	ctx, cancel := context.WithTimeout(ctx, testTimeout+time.Minute)
	defer cancel()
	dir := filepath.Join(tree, pkg)
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "run.test"), "-test.v", "-test.timeout="+testTimeout.String(), "-test.run="+pattern)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME=/root", "XDG_CACHE_HOME="+filepath.Join(share, "cache"), "ROOST_TEST_PAYLOAD="+filepath.Join(share, "programs/payload"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	err := cmd.Run()
	took := time.Since(begin).Round(time.Second)
	passed := strings.Count(out.String(), "--- PASS")
	if err == nil {
		fmt.Printf("%stests of %s: %d passed in %s\n", okMark, pkg, passed, took)
		return
	}
	for line := range strings.Lines(out.String()) {
		// What passed, and the names that -v announces, say nothing.
		if t := strings.TrimSpace(line); t != "" && !strings.HasPrefix(t, "=== ") && !strings.HasPrefix(t, "--- PASS") {
			fmt.Print(noteMark, line)
		}
	}
	fmt.Printf("%stests of %s: %v; %d passed in %s\n", failMark, pkg, err, passed, took)
}

// describe says what kind of host this is.
func describe() {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	controllers, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	fmt.Printf("%sLinux %s, control groups version 2 with %s\n", noteMark, bytes.TrimSpace(release), bytes.TrimSpace(controllers))
}
