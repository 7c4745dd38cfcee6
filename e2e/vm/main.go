// Command vm proves Roost on a plain Debian 12 host: systemd as process 1,
// control groups version 2, zram and lxcfs, which the machine that develops
// Roost may not have. It makes that host from Debian packages, starts it in
// qemu, and inside it runs the tests that touch the kernel and then the checks
// of package file service.go, over the systemd unit in packaging/, a reboot
// included; those of file deploy.go build an app there, deploy it, and let it
// go wrong. One line per check; it exits 0 only if every one held.
//
// `make vm` runs it. It is not part of `make test`: it needs qemu-system-x86
// and mmdebstrap, and without -kvm some hour of a host that has nothing else to
// do. The checks under requests are checks of time, too: on a busy host what is
// inside may miss the drain of ten seconds.
//
// The same program runs inside as well: as "vm inside" it does the checks, and
// under the name "go" it hands out what was built on the outside, since the
// tests build the programs of their machines and the host inside has no Go.
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
)

func main() {
	if filepath.Base(os.Args[0]) == "go" {
		os.Exit(handOut(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "inside" {
		os.Exit(inside())
	}
	dir := flag.String("dir", "bin/vm", "where the virtual machine is made and kept")
	only := flag.String("only", "", "phases to run, comma-separated: tests, service, reboot, cut (default all)")
	run := flag.String("run", "", "run only the test binaries, or the checks of the service, whose name contains one of these words, comma-separated (the kernel takes them: no spaces)")
	kvm := flag.Bool("kvm", false, "use /dev/kvm, where it works; emulation needs nothing and is slow")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	phases := []string{phaseTests, phaseService, phaseReboot, phaseCut}
	if *only != "" {
		phases = strings.Split(*only, ",")
	}
	if err := outside(ctx, &machine{dir: *dir, kvm: *kvm}, phases, *run); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

// The phases: one start of the virtual machine each. Reboot starts from the
// disk that service left when it was shut down, cut from that of reboot, whose
// power was cut.
const (
	phaseTests   = "tests"
	phaseService = "service"
	phaseReboot  = "reboot"
	phaseCut     = "cut"
)

func outside(ctx context.Context, v *machine, phases []string, run string) (err error) {
	begin := time.Now()
	if os.Getuid() != 0 {
		return errors.New("run it as root: it makes a Debian system with its owners")
	}
	if v.dir, err = filepath.Abs(v.dir); err != nil {
		return err
	}
	if err := v.make(ctx); err != nil {
		return err
	}
	if err := v.fill(ctx, slices.Contains(phases, phaseTests), run); err != nil {
		return err
	}
	failed := 0
	for _, phase := range phases {
		n, err := v.boot(ctx, phase, run)
		if err != nil {
			return err
		}
		failed += n
	}
	if failed > 0 {
		return fmt.Errorf("%d checks failed; the console is in %s", failed, v.path("console.log"))
	}
	fmt.Printf("Everything held, in %s.\n", time.Since(begin).Round(time.Second))
	return nil
}
