package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// buildPace is the time between two requests to the app that is served
	// while a build runs, burnTime how long that build takes.
	buildPace = 2 * time.Millisecond
	burnTime  = 15 * time.Second
	rebuilds  = 15
)

// build measures what a heavy build does to an app that is served, and how
// long a build takes that has nothing to do, or one file.
func (w *world) build(ctx context.Context) (err error) {
	const app = "build"
	if _, err := w.run(ctx, app, web(helloImage)); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-build-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	page := filepath.Join(dir, "page.txt")
	write := func(dockerfile, text string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644), os.WriteFile(page, []byte(text), 0o644))
	}
	build := func() (time.Duration, error) {
		begin := time.Now()
		_, err := w.CLI(ctx, "image", "build", dir, "--app", app, "--progress", "quiet")
		return time.Since(begin), err
	}
	const small = "FROM " + helloImage + "\nCOPY page.txt /page.txt\n"
	if err := write(small, "0"); err != nil {
		return err
	}
	if _, err := build(); err != nil { // starts the builder
		return err
	}
	var unchanged, changed samples
	for n := range rebuilds {
		t, err := build()
		if err != nil {
			return err
		}
		unchanged = append(unchanged, t)
		if err := write(small, fmt.Sprint(n+1)); err != nil {
			return err
		}
		if t, err = build(); err != nil {
			return err
		}
		changed = append(changed, t)
	}

	alone, err := w.paced(app, time.Now().Add(burnTime/2), nil)
	if err != nil {
		return err
	}
	if err := write("FROM "+helloImage+fmt.Sprintf("\nRUN [\"/app\", \"burn\", %q]\n", burnTime), "x"); err != nil {
		return err
	}
	done := beside(build)
	during, err := w.paced(app, time.Now().Add(patience), done)
	if err != nil {
		return err
	}
	r := w.report
	r.detail("Build with nothing changed, whole command", unchanged)
	r.detail("Build with one file changed, whole command", changed)
	r.detail("Request to an app, nothing else", alone)
	r.detail("Request to an app, during a build on every processor", during)
	r.below("Rebuild with nothing changed (p50)", unchanged.p50(), time.Second, fmt.Sprintf("one file changed %s", ms(changed.p50())))
	r.below("Request during a build on every processor (p99)", during.quantile(0.99), max(10*alone.quantile(0.99), 20*time.Millisecond),
		fmt.Sprintf("without a build %s; p50 %s and %s", ms(alone.quantile(0.99)), ms(during.p50()), ms(alone.p50())))
	return w.api.DeleteApp(ctx, app, true)
}

// beside runs a build beside what its caller does; the channel has its error.
func beside(build func() (time.Duration, error)) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := build()
		done <- err
	}()
	return done
}

// paced asks an app at a steady pace until a moment, or until done has a value.
func (w *world) paced(app string, end time.Time, done <-chan error) (samples, error) {
	var s samples
	tick := time.NewTicker(buildPace)
	defer tick.Stop()
	for time.Now().Before(end) {
		select {
		case err := <-done:
			return s, err
		case <-tick.C:
		}
		t, err := w.ask(app, "/")
		if err != nil {
			return nil, err
		}
		s = append(s, t)
	}
	return s, nil
}
