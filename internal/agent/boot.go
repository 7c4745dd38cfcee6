package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/network"
	"github.com/roost-run/roost/internal/orders"
	"github.com/roost-run/roost/internal/runtime"
	"github.com/roost-run/roost/internal/runtime/bundle"
)

// instance is one version of a machine on this host: its directory, its place
// in the network, and its boots. The machine's goroutine owns it until it is
// retired; then the goroutine that sees it off does.
type instance struct {
	machine   *root.Machine // as of the version: spec, app, name
	network   uint32
	image     ocispec.ImageConfig
	phase     orders.Phase
	stamp     root.Stamp // of the entry that brought the phase
	heard     root.Stamp // of the newest entry, whatever it says
	last      uint64     // number of the newest boot prepared
	seen      uint64     // number of the newest boot the journal told of
	running   uint64     // number of the boot in use, 0 none
	next      bool       // boot number last is prepared and not used yet
	staged    bool       // the supervisor knows it
	furnished bool       // network and directories are there, image is read
	problem   string     // why boot number last cannot run
	began     time.Time  // when the boot in use was started, as far as known
	exit      *orders.Exit
	failure   string     // Error of the newest failed or exited entry
	booted    root.Stamp // of the newest start
	checks    checked
}

func (i *instance) id() root.InstanceID { return i.machine.Spec.Instance }

func (i *instance) container(n uint64) string {
	return strings.ToLower(string(i.id())) + "-" + strconv.FormatUint(n, 10)
}

// releaseLog is the provider of what a release command prints, in logs.
const releaseLog = "release"

// note takes over what an entry says about the instance itself.
func (i *instance) note(e orders.Entry) {
	if i.heard.Before(e.Stamp) {
		i.heard = e.Stamp
	}
	p := orders.PhaseAfter(e.Type)
	if p == "" || !i.stamp.Before(e.Stamp) {
		return // stamps compare with those of the supervisor's account: of phases
	}
	i.stamp, i.phase = e.Stamp, p
	i.seen = max(i.seen, e.Number)
	switch e.Type {
	case orders.EntryStarting:
		i.booted = e.Stamp
	case orders.EntryStarted:
		i.began = e.At
	}
	if p != orders.PhaseStopped {
		i.running = e.Number
	} else {
		i.running = 0
		i.exit, i.failure = e.Exit, e.Error
	}
	if e.Number >= i.last { // the prepared boot is this one: used
		i.next = false
	}
}

func (a *Agent) attachment(i *instance) network.Attachment {
	s := i.machine.Spec
	return network.Attachment{
		Namespace: a.namespace(i.id()),
		Interface: network.InterfaceFor(s.Address.Index),
		IPv4:      s.Address.IPv4,
		IPv6:      s.Address.IPv6,
		NetworkID: i.network,
	}
}

func (a *Agent) namespace(id root.InstanceID) string {
	return filepath.Join(a.o.Config.Run, "netns", string(id))
}

func (a *Agent) bootDir(id root.InstanceID, n uint64) string {
	return filepath.Join(a.o.Config.MachineDir(id), strconv.FormatUint(n, 10))
}

// rootfs is where a boot's root file system is mounted, and under which key: a
// persistent one serves all boots of the instance.
func (a *Agent) rootfs(i *instance, n uint64) (key, target string) {
	if i.persistent() {
		return strings.ToLower(string(i.id())) + "-rootfs", filepath.Join(a.o.Config.MachineDir(i.id()), "rootfs")
	}
	return i.container(n), filepath.Join(a.bootDir(i.id(), n), "rootfs")
}

func (i *instance) persistent() bool {
	p := i.machine.Spec.Config.Persist
	return p == root.PersistRestart || p == root.PersistAlways
}

// stage makes a version ready to run: network and first boot, and keeps the
// images of its machine's versions. On an error nothing of it is left. An error
// of kind Invalid is the config's fault.
func (a *Agent) stage(ctx context.Context, m *root.Machine, keep ...root.Digest) (_ *instance, err error) {
	i := &instance{machine: m, phase: orders.PhaseStopped}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.discard(context.WithoutCancel(ctx), i))
		}
	}()
	err = a.prepare(ctx, i, func(ctx context.Context) error { return a.protect(ctx, m.ID, keep...) })
	if err != nil {
		return nil, err
	}
	if i.problem != "" {
		return nil, root.Errorf(root.Invalid, "%s", i.problem)
	}
	return i, nil
}

// furnish makes what all boots of an instance share, but for its network,
// which attach makes. Both are idempotent.
func (a *Agent) furnish(ctx context.Context, i *instance) error {
	app := a.o.Catalog.Snapshot().App(i.machine.App)
	if app == nil {
		return root.Errorf(root.NotFound, "app %q not found", i.machine.App)
	}
	i.network = app.NetworkID
	img, err := a.o.Images.Config(ctx, i.machine.Spec.Image.Digest)
	if err != nil {
		return fmt.Errorf("read image %s: %w", i.machine.Spec.Image.Ref(), err)
	}
	i.image = img.Config
	dir := a.o.Config.MachineDir(i.id())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(a.namespace(i.id())), 0o755); err != nil {
		return err
	}
	return a.show(ctx, i.machine)
}

func (a *Agent) attach(ctx context.Context, i *instance) error {
	if err := a.o.Network.Attach(ctx, a.attachment(i)); err != nil {
		return fmt.Errorf("attach %s to the network: %w", i.machine.ID, err)
	}
	return nil
}

// prepare makes the next boot and hands it to the supervisor. A boot that
// cannot run because of the config is handed over too, with its Problem. What
// is done beside has succeeded, too, when the boot is handed over.
func (a *Agent) prepare(ctx context.Context, i *instance, beside ...func(context.Context) error) (err error) {
	// Not a number that the journal has told of, whose boot is cleaned up:
	// after a start of the host nothing else is left of it.
	n := max(i.last, i.seen) + 1
	m := i.machine
	c := m.Spec.Config
	dir := a.bootDir(i.id(), n)
	if !i.furnished {
		if err := a.furnish(ctx, i); err != nil {
			return err
		}
		beside = append(beside, func(ctx context.Context) error { return a.attach(ctx, i) })
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("prepare boot %d of %s: %w", n, m.ID, err), a.cleanBoot(context.WithoutCancel(ctx), i, n))
		}
	}()
	// The links, the root file system and the files do not need each other:
	// most of each is waiting for the kernel or the disk.
	var proc bundle.Process
	var problem string
	g, gctx := errgroup.WithContext(ctx)
	for _, f := range beside {
		g.Go(func() error { return f(gctx) })
	}
	g.Go(func() (err error) {
		proc, problem, err = a.mountBoot(gctx, i, n)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	i.furnished = true
	boot := orders.Boot{
		Machine: m.ID, App: m.App, Instance: i.id(), Generation: m.Spec.Generation,
		Number: n, Container: i.container(n), Bundle: dir,
		IPv4: m.Spec.Address.IPv4, IPv6: m.Spec.Address.IPv6, Interface: network.InterfaceFor(m.Spec.Address.Index),
		Stop: c.Stop, Memory: c.Guest.Memory, Swap: c.Swap, TTY: c.Init.TTY,
		Command: strings.Join(proc.Args, " "), Problem: problem,
	}
	if g := m.Group(); g == root.GroupReleaseCommand || g == root.GroupTest {
		boot.Log = releaseLog
	}
	// The answer's stamp is not taken over: entries before it may be under way.
	if _, err := a.o.Supervisor.Prepare(ctx, boot); err != nil {
		return err
	}
	i.last, i.next, i.problem, i.staged = n, true, problem, true
	return nil
}

// mountBoot mounts a boot's root file system and fills it.
func (a *Agent) mountBoot(ctx context.Context, i *instance, n uint64) (proc bundle.Process, problem string, _ error) {
	key, rootfs := a.rootfs(i, n)
	for _, d := range []string{a.bootDir(i.id(), n), rootfs} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return proc, "", err
		}
	}
	if err := a.o.Images.Mount(ctx, key, i.machine.Spec.Image.Digest, rootfs); err != nil {
		return proc, "", err
	}
	return a.fill(ctx, i, n, rootfs)
}

// fill writes a boot's files and its bundle. The problem is what the user has
// to mend.
func (a *Agent) fill(ctx context.Context, i *instance, n uint64, rootfs string) (_ bundle.Process, problem string, _ error) {
	m := i.machine
	c := m.Spec.Config
	dir := a.bootDir(i.id(), n)
	secrets, err := a.secrets(ctx, m)
	var mounts []specs.Mount
	var files []root.File
	if err == nil {
		mounts, files, err = secretFiles(dir, c.Files, secrets)
	}
	if err == nil {
		secrets, err = environment(c.Process, secrets)
	}
	if err == nil {
		files, err = a.files(ctx, m.Org, files)
	}
	if err == nil {
		err = bundle.WriteFiles(rootfs, files)
	}
	var proc bundle.Process
	if err == nil {
		proc, err = bundle.Resolve(rootfs, c, i.image)
	}
	if err != nil {
		if k := root.KindOf(err); k != root.Invalid && k != root.NotFound {
			return proc, "", err
		}
		problem = root.MessageOf(err)
	}
	// The machine may write to these. Were they here, beside its bundle, it
	// could fill the memory that all bundles share.
	beside := a.beside(i, n)
	if err := os.MkdirAll(beside, 0o700); err != nil {
		return proc, "", err
	}
	resolv, hosts, name := filepath.Join(beside, "resolv.conf"), filepath.Join(beside, "hosts"), filepath.Join(beside, "hostname")
	for _, f := range []struct {
		name string
		data []byte
	}{{resolv, resolvConf(c.DNS)}, {hosts, hostsFile(rootfs, m)}, {name, []byte(hostname(m) + "\n")}} {
		if err := os.WriteFile(f.name, f.data, 0o644); err != nil {
			return proc, "", err
		}
	}
	if problem != "" {
		return proc, problem, nil // never started: a bundle would not be read
	}
	err = bundle.Write(dir, bundle.Spec{
		Container:  i.container(n),
		Hostname:   hostname(m),
		CgroupPath: a.o.CgroupPath(i.container(n)),
		Rootfs:     rootfs,
		NetNS:      a.namespace(i.id()),
		Image:      i.image,
		Config:     c,
		Env:        withSecrets(secrets, platformEnv(m)),
		Mounts:     mounts,
		APIDir:     filepath.Join(a.o.Config.MachineDir(i.id()), "fly"), // the supervisor listens there
		ResolvConf: resolv, HostsFile: hosts, HostnameFile: name,
		Memory: c.Guest.Memory, Swap: c.Swap,
		CPUShares: bundle.Shares(c.Guest),
		Init:      a.o.Init, LXCFS: a.o.LXCFS, Listener: a.swapon(),
	})
	if root.IsKind(err, root.Invalid) {
		return proc, root.MessageOf(err), nil
	}
	return proc, "", err
}

// swapon is the socket for machines that may turn on swap: those that share
// the host's kernel.
func (a *Agent) swapon() string {
	if runtime.Sandboxed(a.o.Config.Runtime) {
		return ""
	}
	return a.o.Config.SwaponSocket()
}

// files fills in the contents that are another image's configuration.
func (a *Agent) files(ctx context.Context, org root.OrgSlug, files []root.File) ([]root.File, error) {
	out := files
	for n, f := range files {
		if f.ImageConfig == "" {
			continue
		}
		if a.o.MayUse != nil { // the name may have become another's since
			if err := a.o.MayUse(ctx, org, f.ImageConfig); root.IsKind(err, root.Forbidden) {
				return nil, &root.Error{Kind: root.Invalid, Message: "config.files: " + root.MessageOf(err), Err: err}
			} else if err != nil {
				return nil, err
			}
		}
		img, err := a.o.Images.Resolve(ctx, f.ImageConfig)
		if err != nil {
			return nil, err
		}
		conf, err := a.o.Images.Config(ctx, img.Digest)
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(conf)
		if err != nil {
			return nil, err
		}
		if &out[0] == &files[0] {
			out = append([]root.File(nil), files...)
		}
		out[n].Content = data
	}
	return out, nil
}

// beside is where a boot's files are that its machine may write to.
func (a *Agent) beside(i *instance, n uint64) string {
	key, _ := a.rootfs(i, n)
	return filepath.Join(a.o.Images.Beside(key), strconv.FormatUint(n, 10))
}

// cleanBoot removes what is left of a boot that was used or never will be.
func (a *Agent) cleanBoot(ctx context.Context, i *instance, n uint64) error {
	if !i.persistent() {
		key, target := a.rootfs(i, n)
		if err := a.o.Images.Unmount(ctx, key, target); err != nil {
			return fmt.Errorf("clean boot %d of %s: %w", n, i.machine.ID, err)
		}
	}
	if err := os.RemoveAll(a.beside(i, n)); err != nil {
		return fmt.Errorf("clean boot %d of %s: %w", n, i.machine.ID, err)
	}
	return removeDir(a.bootDir(i.id(), n))
}

// discard removes everything of an instance. It is idempotent.
func (a *Agent) discard(ctx context.Context, i *instance) error {
	if err := a.o.Supervisor.Remove(ctx, i.id()); err != nil {
		return err // its processes may still use the rest
	}
	i.staged, i.next, i.furnished = false, false, false
	i.running, i.phase = 0, orders.PhaseStopped
	errs := []error{a.o.Network.Detach(ctx, a.attachment(i))}
	if i.persistent() {
		key, target := a.rootfs(i, 0)
		errs = append(errs, a.o.Images.Unmount(ctx, key, target))
	}
	for _, n := range a.bootsOf(i.id()) {
		errs = append(errs, a.cleanBoot(ctx, i, n))
	}
	errs = append(errs, removeDir(a.o.Config.MachineDir(i.id())))
	return errors.Join(errs...)
}

// bootsOf lists the boots that have a directory.
func (a *Agent) bootsOf(id root.InstanceID) []uint64 {
	entries, err := os.ReadDir(a.o.Config.MachineDir(id))
	if err != nil {
		return nil
	}
	var out []uint64
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// removeDir removes a directory of ours, but nothing that is still mounted in it.
func removeDir(dir string) error {
	mounted, err := mountedBelow(dir)
	if err != nil {
		return err
	}
	for _, point := range mounted {
		if filepath.Base(point) != secretsDir {
			return fmt.Errorf("remove %s: %s is still mounted", dir, point)
		}
		if err := unmountTmpfs(point); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// mountedBelow returns the mount points at or below dir.
func mountedBelow(dir string) (points []string, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			points = append(points, f[4])
		}
	}
	return points, nil
}
