package suite

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// A test binary whose time is up is ended a little before go test does it,
// which would print every goroutine there is.
const (
	// before is how much earlier: a part of the whole time.
	before = 20
	// maxGoroutines and maxFrames bound what is shown of where the tests are.
	maxGoroutines = 30
	maxFrames     = 12
)

// watchTime ends the process when its time is up, and says what the tests were
// doing. The guard does the rest.
func watchTime() *time.Timer {
	timeout, err := time.ParseDuration(flag.Lookup("test.timeout").Value.String())
	if err != nil || timeout <= 0 {
		return time.NewTimer(0)
	}
	return time.AfterFunc(timeout-timeout/before, func() {
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		fmt.Fprintf(os.Stderr, "FAIL: the tests have not ended after %s. They are at:\n%s", timeout-timeout/before, testStacks(string(stacks)))
		os.Exit(1)
	})
}

// testStacks picks out of all goroutines' stacks those of tests, and shortens
// them.
func testStacks(all string) string {
	var b strings.Builder
	shown := 0
	for stack := range strings.SplitSeq(all, "\n\n") {
		if !strings.Contains(stack, "/e2e/") || !strings.Contains(stack, "_test.go:") && !strings.Contains(stack, ".Steps[") || strings.Contains(stack, "testing.(*T).Parallel") {
			continue
		}
		if shown++; shown > maxGoroutines {
			b.WriteString("... and more\n")
			break
		}
		lines := strings.Split(strings.TrimSpace(stack), "\n")
		// The first line is the state, then a frame has two.
		kept := []string{lines[0]}
		for i := 1; i+1 < len(lines) && len(kept) <= 2*maxFrames; i += 2 {
			if strings.Contains(lines[i+1], "/e2e/") {
				kept = append(kept, lines[i], lines[i+1])
			}
		}
		b.WriteString(strings.Join(kept, "\n") + "\n\n")
	}
	return b.String()
}
