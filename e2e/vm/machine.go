package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/roost-run/roost/e2e/instance"
)

// packages are those of a host that follows the README, and what the tests
// look with. The kernel is Debian's own.
const packages = "systemd,systemd-sysv,udev,dbus,linux-image-cloud-amd64,initramfs-tools,kmod,e2fsprogs,mount,procps," +
	"iproute2,iputils-ping,nftables,ca-certificates,tzdata,runc,tini,lxcfs,poppler-utils,python3-requests,curl,busybox-static"

// tests are the packages whose tests touch the kernel, and which of their tests
// run inside, as a pattern; the others of a package need a Go tool chain.
var tests = []struct{ pkg, run string }{
	{pkg: "internal/runtime/cgroup"}, {pkg: "internal/runtime/runc"}, {pkg: "internal/runtime/bundle"}, {pkg: "internal/runtime/swap"},
	{pkg: "internal/runtime/swapon"}, {pkg: "internal/network"}, {pkg: "internal/supervisor"}, {pkg: "internal/builder", run: "^Test(Dockerfile|Context)"},
	{pkg: "e2e/real"},
}

// programs are what those tests build; see handOut.
var programs = map[string]string{
	"payload": "./internal/runtime/runtimetest/payload",
	"probe":   "./e2e/real/probe",
}

// bootTimeout is for one phase without hardware support for virtualization.
const bootTimeout = 2 * time.Hour

// shutdownTimeout is below the 90 seconds that systemd gives processes that do
// not end.
const shutdownTimeout = time.Minute

// machine is the virtual machine and its files.
type machine struct {
	dir string
	kvm bool // use the processor's virtualization
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// make makes the Debian system once, and its disk.
func (m *machine) make(ctx context.Context) error {
	for _, tool := range []string{"mmdebstrap", "mke2fs", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install mmdebstrap e2fsprogs qemu-system-x86", tool)
		}
	}
	root := m.path("root")
	if _, err := os.Stat(root); err != nil {
		fmt.Println("Making a Debian 12 system in", root)
		half := m.path("root.half")
		if err := errors.Join(os.RemoveAll(half), os.MkdirAll(m.dir, 0o755)); err != nil {
			return err
		}
		if err := command(ctx, "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--include="+packages, "bookworm", half); err != nil {
			return err
		}
		if err := os.Rename(half, root); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/hostname": "roost-vm\n",
		"etc/hosts":    "127.0.0.1 localhost roost-vm\n::1 localhost\n",
		"etc/systemd/system/roost-vm.service": `[Unit]
After=multi-user.target network-online.target
Wants=network-online.target
[Service]
Type=exec
ExecStart=/bin/sh -c 'mkdir -p /share && mount /dev/vdb /share && ln -sf /share/vm /usr/local/bin/go && exec /share/vm inside >/dev/ttyS1 2>&1'
ExecStopPost=/bin/systemctl --no-block poweroff
[Install]
WantedBy=multi-user.target
`,
		"etc/systemd/network/eth0.network": "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nDNS=10.0.2.3\n",
		"etc/resolv.conf":                  "nameserver 10.0.2.3\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	// As `systemctl enable` does.
	units := filepath.Join(root, "etc/systemd/system")
	// With that folder the journal outlives the machine: debugfs reads it.
	for _, dir := range []string{filepath.Join(units, "multi-user.target.wants"), filepath.Join(root, "var/log/journal")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"multi-user.target.wants/roost-vm.service":         "../roost-vm.service",
		"multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
		"serial-getty@ttyS1.service":                       "/dev/null",
	} {
		name := filepath.Join(units, link)
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink(target, name); err != nil {
			return err
		}
	}
	return m.disk(ctx, "root", "root.img", "6G")
}

// disk makes a disk with what a folder has.
func (m *machine) disk(ctx context.Context, folder, image, size string) error {
	if err := os.Remove(m.path(image)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return command(ctx, "mke2fs", "-q", "-t", "ext4", "-d", m.path(folder), m.path(image), size)
}

// fill builds everything that runs inside, and those tests that are chosen.
func (m *machine) fill(ctx context.Context, withTests bool, run string) error {
	fmt.Println("Building Roost and its tests")
	share := m.path("share")
	if err := os.RemoveAll(share); err != nil {
		return err
	}
	for _, dir := range []string{"tree/bin", "tree/packaging", "programs"} {
		if err := os.MkdirAll(filepath.Join(share, dir), 0o755); err != nil {
			return err
		}
	}
	build := func(out, pkg string) error {
		return command(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(share, out), pkg)
	}
	err := errors.Join(build("tree/bin/roost", "./cmd/roost"), build("vm", "./e2e/vm"))
	for name, pkg := range programs {
		err = errors.Join(err, build(filepath.Join("programs", name), pkg))
	}
	if err != nil {
		return err
	}
	if withTests {
		for _, t := range tests {
			if !chosen(t.pkg, run) {
				continue
			}
			dir, pkg := filepath.Join(share, "tree", t.pkg), t.pkg
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if err := command(ctx, "go", "test", "-trimpath", "-c", "-o", filepath.Join(dir, "run.test"), "./"+pkg); err != nil {
				return err
			}
			data := filepath.Join(pkg, "testdata")
			if _, err := os.Stat(data); err == nil {
				if err := os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS(data)); err != nil {
					return err
				}
			}
		}
	}
	if withTests {
		if err := debianImage(ctx, share); err != nil {
			return err
		}
	}
	unit, err := os.ReadFile("packaging/roost.service")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(share, "tree/packaging/roost.service"), unit, 0o644); err != nil {
		return err
	}
	err = errors.Join(instance.BuildArchive(ctx, programs["probe"], probe, filepath.Join(share, "probe.tar")), m.baseImage(ctx, filepath.Join(share, "base.tar")))
	if err != nil {
		return err
	}
	return m.disk(ctx, "share", "share.img", "2G")
}

// gunicorn is an image that e2e/real makes once and keeps in its user's cache;
// the host inside has nothing to make it with.
const gunicorn = "roost/debian-gunicorn.tar"

func debianImage(ctx context.Context, share string) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	kept, given := filepath.Join(cache, gunicorn), filepath.Join(share, "cache", gunicorn)
	for _, name := range []string{kept, given} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
	}
	if _, err := os.Stat(kept); err != nil {
		part := kept + ".vm"
		if err := command(ctx, "env", "BASE_IMAGE_NAME=registry.localhost/gunicorn:latest", "scripts/base-image", part, "python3", "gunicorn"); err != nil {
			return err
		}
		if err := os.Rename(part, kept); err != nil {
			return err
		}
	}
	return command(ctx, "cp", kept, given)
}

// baseImage writes what the Dockerfile inside begins with: the probe, and the
// few commands that it and its start script need. A whole Debian would take
// minutes to load there.
func (m *machine) baseImage(ctx context.Context, archive string) error {
	busybox, err := os.ReadFile(m.path("root/bin/busybox"))
	if err != nil {
		return err
	}
	files := []instance.File{{Name: "bin/", Mode: 0o755}, {Name: "bin/busybox", Mode: 0o755, Data: string(busybox)}}
	for _, name := range []string{"sh", "cat", "chmod", "fallocate", "mkdir", "mkswap", "swapon", "tail"} {
		files = append(files, instance.File{Name: "bin/" + name, Link: "busybox"})
	}
	return instance.BuildArchive(ctx, programs["probe"], base, archive, files...)
}

// boot starts the virtual machine for one phase, prints what it says, and
// returns how many checks failed.
func (m *machine) boot(ctx context.Context, phase, run string) (failed int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("phase %s took more than %s", phase, bootTimeout))
	defer cancel()
	disk := m.path("root.img")
	options := "format=raw,if=virtio,cache=unsafe"
	switch phase {
	case phaseTests:
		options += ",snapshot=on"
	case phaseService, phaseReboot, phaseCut:
		disk = m.path("service.img")
		if phase == phaseService {
			if err := command(ctx, "cp", "--sparse=always", m.path("root.img"), disk); err != nil {
				return 0, err
			}
		}
	default:
		return 0, fmt.Errorf("there is no phase %q", phase)
	}
	kernel, err := only(m.path("root/boot/vmlinuz-*"))
	if err != nil {
		return 0, err
	}
	initrd, err := only(m.path("root/boot/initrd.img-*"))
	if err != nil {
		return 0, err
	}
	args := []string{
		"-m", "4096", "-smp", "2", "-display", "none", "-monitor", "none", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
		"-append", "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 roost.phase=" + phase + " roost.run=" + run,
		"-drive", "file=" + disk + "," + options, "-drive", "file=" + m.path("share.img") + ",format=raw,if=virtio,cache=unsafe,snapshot=on",
		"-nic", "user,model=virtio-net-pci,ipv6=off", "-serial", "file:" + m.path("console.log"), "-serial", "stdio",
	}
	if m.kvm {
		args = append([]string{"-enable-kvm", "-cpu", "host"}, args...)
	}
	begin := time.Now()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := false
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		switch {
		case line == endMark:
			done, begin = true, time.Now()
			continue
		case strings.HasPrefix(line, failMark):
			failed++
		}
		fmt.Println(line)
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	switch {
	case ctx.Err() != nil:
		return failed, context.Cause(ctx)
	case err != nil:
		return failed, fmt.Errorf("qemu: %w", err)
	case !done:
		return failed, fmt.Errorf("phase %s ended early; the console is in %s", phase, m.path("console.log"))
	}
	// Suspended machines must not hold the host up.
	took := time.Since(begin).Round(time.Second)
	if took > shutdownTimeout {
		fmt.Printf("%safter phase %s the host is down: it took %s\n", failMark, phase, took)
		return failed + 1, nil
	}
	fmt.Printf("%safter phase %s the host is down (%s)\n", okMark, phase, took)
	return failed, nil
}

// only returns the one file of a pattern.
func only(pattern string) (string, error) {
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		return "", fmt.Errorf("no file is like %s", pattern)
	}
	return names[len(names)-1], nil
}

func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
