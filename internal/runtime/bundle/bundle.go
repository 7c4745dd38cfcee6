// Package bundle makes the OCI bundle of a container: a directory with the
// config.json that an OCI runtime reads (OCI runtime specification 1.x). It
// also looks the command and the user up inside the root file system, so that
// a mistake in either is a clear message instead of an exit code, and writes
// the files a config brings along.
//
// It trusts nothing inside a root file system: every path is resolved with
// the root file system as the root directory, symbolic links included.
//
// The agent calls it when it prepares a boot, with the root file system
// mounted. It keeps no state and starts no goroutine; its functions are safe
// for concurrent use on different directories.
package bundle

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/runtime/cgroup"
)

// Spec is what Write needs. All paths are the host's.
type Spec struct {
	Container  string
	Hostname   string
	CgroupPath string // cgroup.Parent.Path of the container
	Rootfs     string // mounted and writable
	NetNS      string // file of the network namespace; "" makes an empty one
	Image      ocispec.ImageConfig
	Config     root.Config
	Env        map[string]string // the platform's; beats the image's and the config's
	Mounts     []specs.Mount     // beside the standard ones, in order, after them
	APIDir     string            // directory to appear as /.fly; "" for none
	ResolvConf string            // file to appear as /etc/resolv.conf; "" keeps the image's
	HostsFile  string            // file to appear as /etc/hosts; "" keeps the image's
	// HostnameFile appears as /etc/hostname; "" is one that is made in the bundle.
	HostnameFile string
	Memory       root.Bytes // hard limit; 0 is none
	Swap         root.Bytes // beside Memory
	CPUShares    uint64     // weight, see Shares; 0 is the kernel's default
	Init         string     // a static tini, which becomes process 1; "" runs the command itself
	LXCFS        string     // mount point of lxcfs; "" shows the host's /proc figures
	Listener     string     // socket that answers swapon and swapoff, see runtime/swapon; "" refuses them
}

// Where things appear inside. InitPath cannot collide with an image's own
// files: nobody ships a directory of that name.
const (
	InitPath = "/.roost/init"
	APIPath  = "/.fly"
)

const (
	// ociVersion is the oldest specification with all that is used here.
	ociVersion = "1.0.2"
	nofile     = 10240
	// maxPIDs keeps a fork bomb inside; no honest guest comes near it.
	maxPIDs = 8192
	// oomScore makes the kernel prefer a machine's process over the platform's
	// when the host itself runs out.
	oomScore = 500
)

// Write writes config.json into dir, which is made if needed, and a hostname
// file where the spec names none. It gives Invalid if the command or the user
// does not exist in the root file system.
func Write(dir string, s Spec) error {
	p, err := resolve(s.Rootfs, s.Config, s.Image, s.Env)
	if err != nil {
		return err
	}
	spec, err := s.oci(dir, p)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return fmt.Errorf("bundle %s: %w", s.Container, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("bundle %s: %w", s.Container, err)
	}
	if s.HostnameFile == "" {
		err = os.WriteFile(filepath.Join(dir, "hostname"), []byte(s.Hostname+"\n"), 0o644)
	}
	// Secrets are in the environment: nobody else reads it.
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	if err != nil {
		return fmt.Errorf("bundle %s: %w", s.Container, err)
	}
	return nil
}

// Read reads the config.json of a bundle.
func Read(dir string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, err
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("read bundle %s: %w", dir, err)
	}
	return &s, nil
}

// Limits are the memory and the swap beside it that a bundle asks for; 0
// memory is no limit.
func Limits(s *specs.Spec) (memory, swap root.Bytes) {
	if s.Linux == nil || s.Linux.Resources == nil || s.Linux.Resources.Memory == nil {
		return 0, 0
	}
	m := s.Linux.Resources.Memory
	if m.Limit == nil || *m.Limit <= 0 {
		return 0, 0
	}
	memory = root.Bytes(*m.Limit)
	if m.Swap != nil && *m.Swap > *m.Limit {
		swap = root.Bytes(*m.Swap - *m.Limit)
	}
	return memory, swap
}

// Shares is the CPU weight of a guest, in the unit of the OCI spec's
// cpu.shares. A performance CPU weighs 16 times a shared one: their quotas on
// Fly.io are 80 and 5 ms of each 80 ms.
func Shares(g root.Guest) uint64 {
	per := uint64(64)
	if g.CPUKind == "performance" {
		per = 1024
	}
	return per * uint64(max(1, g.CPUs))
}

func (s *Spec) oci(dir string, p Process) (*specs.Spec, error) {
	version, swapAccounted, err := cgroup.Version()
	if err != nil {
		return nil, err
	}
	args := p.Args
	if s.Init != "" {
		args = append([]string{InitPath, "--"}, args...)
	}
	spec := &specs.Spec{
		Version:  ociVersion,
		Hostname: s.Hostname,
		Root:     &specs.Root{Path: s.Rootfs},
		Mounts:   s.mounts(dir, version),
		Process: &specs.Process{
			Terminal:     s.Config.Init.TTY,
			Args:         args,
			Env:          p.Env,
			Cwd:          p.Dir,
			User:         specs.User{UID: p.UID, GID: p.GID, AdditionalGids: p.Groups},
			Capabilities: Capabilities(p.UID),
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: nofile, Hard: nofile}},
			OOMScoreAdj:  new(oomScore),
			// As Docker: sudo and ping inside an image keep working.
			NoNewPrivileges: false,
		},
		Linux: &specs.Linux{
			CgroupsPath: s.CgroupPath,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace, Path: s.NetNS},
			},
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				Pids:    &specs.LinuxPids{Limit: new(int64(maxPIDs))},
			},
			// As Docker: the namespace is the machine's alone, so any user may
			// listen on port 80 and ping.
			Sysctl: map[string]string{
				"net.ipv4.ip_unprivileged_port_start": "0",
				"net.ipv4.ping_group_range":           "0 2147483647",
			},
		},
	}
	if s.Memory > 0 {
		spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(s.Memory))}
		if swapAccounted {
			spec.Linux.Resources.Memory.Swap = new(int64(s.Memory + s.Swap))
		}
	}
	if s.CPUShares > 0 {
		spec.Linux.Resources.CPU = &specs.LinuxCPU{Shares: new(s.CPUShares)}
	}
	spec.Linux.Seccomp = seccomp.DefaultProfile(spec)
	if s.Listener != "" {
		spec.Linux.Seccomp.ListenerPath = s.Listener
		spec.Linux.Seccomp.Syscalls = append(spec.Linux.Seccomp.Syscalls, specs.LinuxSyscall{Names: []string{"swapon", "swapoff"}, Action: specs.ActNotify})
	}
	return spec, nil
}

// OwnSwap reports whether the container of a bundle may turn on swap.
func OwnSwap(s *specs.Spec) bool {
	return s.Linux != nil && s.Linux.Seccomp != nil && s.Linux.Seccomp.ListenerPath != ""
}

// capabilities are Docker's defaults.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// Capabilities are those of a process of the given user: Docker's default
// ones, which a user other than root gets only through programs that have
// them in the file system.
func Capabilities(uid uint32) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{Bounding: capabilities}
	if uid == 0 {
		c.Effective, c.Permitted = capabilities, capabilities
	}
	return c
}

// maskedPaths and readonlyPaths are Docker's defaults.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// lxcfsFiles are what lxcfs can show as the machine's own. OCI runtimes allow
// mounts over exactly these files of /proc.
var lxcfsFiles = []string{"cpuinfo", "loadavg", "meminfo", "stat", "swaps", "uptime"}

func (s *Spec) mounts(dir string, version int) []specs.Mount {
	// As in a virtual machine, half of the memory at most: the kernel's default
	// would be half of the host's.
	half := "size=64m"
	if s.Memory > 0 {
		half = fmt.Sprintf("size=%dk", s.Memory/2/root.KiB)
	}
	m := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", half}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=755", half}},
	}
	if version == 2 {
		// Version 1 would take a mount for each hierarchy at every start.
		m = append(m, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}})
	}
	bind := func(source, destination string, options ...string) {
		m = append(m, specs.Mount{Destination: destination, Type: "bind", Source: source, Options: append([]string{"rbind", "rprivate"}, options...)})
	}
	if s.LXCFS != "" {
		for _, name := range lxcfsFiles {
			source := filepath.Join(s.LXCFS, "proc", name)
			if _, err := os.Stat(source); err == nil {
				bind(source, "/proc/"+name, "nosuid", "nodev", "noexec")
			}
		}
	}
	bind(cmp.Or(s.HostnameFile, filepath.Join(dir, "hostname")), "/etc/hostname")
	if s.ResolvConf != "" {
		bind(s.ResolvConf, "/etc/resolv.conf")
	}
	if s.HostsFile != "" {
		bind(s.HostsFile, "/etc/hosts")
	}
	if s.APIDir != "" {
		bind(s.APIDir, APIPath, "ro", "nosuid", "nodev", "noexec")
	}
	if s.Init != "" {
		bind(s.Init, InitPath, "ro", "nosuid", "nodev")
	}
	return append(m, s.Mounts...)
}
