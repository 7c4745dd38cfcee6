// Command demo shows story B to a person, or with -django how a Django project
// is deployed: it starts a Roost of its own on this host, runs the steps of
// package story or django, one line each, and leaves the host as it was. It
// exits 0 only if every step held and nothing under its names is left; what
// others do on the host meanwhile is only told.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/roost-run/roost/e2e/django"
	"github.com/roost-run/roost/e2e/instance"
	"github.com/roost-run/roost/e2e/story"
)

func main() {
	binary := flag.String("roost", "bin/roost", "the binary to show")
	keep := flag.Bool("keep", false, "leave the platform running at the end")
	withDjango := flag.Bool("django", false, "show the Django example")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *keep, *withDjango); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string, keep, withDjango bool) (err error) {
	begin := time.Now()
	if os.Getuid() != 0 {
		return errors.New("run it as root: machines need namespaces, mounts and control groups")
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	source, err := os.Getwd()
	if err != nil {
		return err
	}
	before, err := instance.ReadHost(ctx)
	if err != nil {
		return err
	}
	settings := story.Settings()
	if withDjango {
		settings = django.Settings()
	}
	in, err := instance.Start(ctx, binary, settings...)
	if err != nil {
		return err
	}
	fmt.Printf("Roost runs: apps at http://*.localhost on %s, API at %s, files in %s\n", in.Edge, in.API, in.Dir)
	var told error
	var host string
	if withDjango {
		s := django.New(in, source)
		defer s.Close()
		host, told = s.Host(), instance.Tell(ctx, os.Stdout, django.Steps(), s)
	} else {
		s := story.New(in, source)
		defer s.Close()
		host, told = s.Host(), instance.Tell(ctx, os.Stdout, story.Steps(), s)
	}
	if told != nil {
		fmt.Printf("\nThe platform's last words:\n%s\n\n", in.LogTail(30))
	}
	if keep {
		_, port, err := net.SplitHostPort(in.Edge)
		if err != nil {
			return errors.Join(told, err)
		}
		fmt.Printf("It is left running. The store: http://%s/\n", net.JoinHostPort(host, port))
		fmt.Printf("Stop it and clean up: %s server stop --machines --run %s && rm -r %s\n", binary, in.Run(), in.Dir)
		return told
	}
	clean := context.WithoutCancel(ctx)
	var others []string
	closed := in.Close(clean)
	if closed == nil {
		others, closed = instance.CheckMarked(clean, before, in.Marks(), in.Dir)
	}
	if err := errors.Join(told, closed); err != nil {
		return err
	}
	restored := "The host is as before."
	if len(others) > 0 {
		restored = "Nothing under this Roost's names is left on the host."
		fmt.Println("Changed on the host meanwhile, under other names than this Roost's:")
		for _, line := range others[:min(len(others), maxOthers)] {
			fmt.Println("  " + line)
		}
		if more := len(others) - maxOthers; more > 0 {
			fmt.Printf("  ... and %d more\n", more)
		}
	}
	fmt.Printf("%s Everything held, in %s.\n", restored, time.Since(begin).Round(time.Second))
	return nil
}

// maxOthers is how much is shown of what others did on the host meanwhile.
const maxOthers = 10
