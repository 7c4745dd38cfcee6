// Command bench measures what docs/benchmarks.md promises: wakes, creation,
// replays, the memory and CPU of the platform and of machines that sleep, and
// plain proxying. Each number stands beside its counterpart of the same run,
// the two taken in turns.
//
// It starts platforms of its own, looks at them from outside only, asserts no
// times, leaves the host as it was, and rewrites the generated section of the
// document.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/roost-run/roost/e2e/instance"
)

func main() {
	binary := flag.String("roost", "bin/roost", "the binary to measure")
	document := flag.String("write", "docs/benchmarks.md", "the document to write to; \"\" for none")
	only := flag.String("only", "", "measure only these, with commas between: proxying,replay,django,cold,build,deploy,idle")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *document, *only); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// measurement is a part of the run.
type measurement struct {
	name string
	run  func(*world, context.Context) error
}

func run(ctx context.Context, binary, document, only string) (err error) {
	begin := time.Now()
	if os.Getuid() != 0 {
		return errors.New("run it as root: machines need namespaces, mounts and control groups")
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	r := &report{load: loadAverage()}
	platforms := []struct {
		settings     []string
		measurements []measurement
	}{
		{
			[]string{"--reclaim-after=1h", "--swap=file:2GB"}, // memory is given back when the measurement says so
			[]measurement{{"proxying", (*world).proxying}, {"replay", (*world).replay}, {"django", (*world).django}, {"cold", (*world).cold}, {"build", (*world).build}, {"deploy", (*world).deploy}},
		},
		// A fresh platform: what an earlier measurement left in its heap is not idle.
		{[]string{"--reclaim-after=1h", "--swap=file:2GB"}, []measurement{{"idle", (*world).idle}}},
	}
	for _, p := range platforms {
		if only != "" {
			p.measurements = slices.DeleteFunc(p.measurements, func(m measurement) bool { return !slices.Contains(strings.Split(only, ","), m.name) })
		}
		if len(p.measurements) == 0 {
			continue
		}
		if err := platform(ctx, binary, p.settings, r, p.measurements); err != nil {
			return err
		}
	}
	if err := r.print(os.Stdout); err != nil {
		return err
	}
	if document != "" && only == "" {
		if err := r.write(ctx, document); err != nil {
			return err
		}
	}
	fmt.Printf("\nThe host is as before. It took %s.\n", time.Since(begin).Round(time.Second))
	return nil
}

// platform starts one, measures on it, and takes it down.
func platform(ctx context.Context, binary string, settings []string, r *report, list []measurement) (err error) {
	before, err := instance.ReadHost(ctx)
	if err != nil {
		return err
	}
	in, err := instance.Start(ctx, binary, settings...)
	if err != nil {
		return err
	}
	w := newWorld(in, r)
	defer func() {
		w.close()
		clean := context.WithoutCancel(ctx)
		if err != nil {
			err = fmt.Errorf("%w\nthe platform's last words:\n%s", err, in.LogTail(30))
		}
		closed := in.Close(clean)
		if closed == nil {
			closed = instance.CheckRestored(clean, before, in.Marks(), in.Dir)
		}
		err = errors.Join(err, closed)
	}()
	archive := filepath.Join(in.Dir, "hello.tar")
	if err := instance.BuildArchive(ctx, "./e2e/bench/app", helloImage, archive); err != nil {
		return err
	}
	if _, err := w.CLI(ctx, "image", "load", archive); err != nil {
		return err
	}
	for _, m := range list {
		begin := time.Now()
		if err := m.run(w, ctx); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		fmt.Printf("%-10s measured in %s\n", m.name, time.Since(begin).Round(time.Second))
	}
	return nil
}
