package bundle

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	root "github.com/roost-run/roost"
)

type Spec struct {
	Container, Hostname, CgroupPath, Rootfs, NetNS string
	Image                                          ocispec.ImageConfig
	Config                                         root.Config
	Env                                            map[string]string
	Mounts                                         []specs.Mount
	APIDir                                         string
	ResolvConf, HostsFile                          string
	Memory, Swap                                   root.Bytes
	CPUShares                                      uint64
	Init                                           string
	LXCFS                                          string
}
type Process struct {
	Args, Env  []string
	Dir        string
	UID, GID   uint32
	Groups     []uint32
	Home, User string
}

func Write(dir string, s Spec) error { return nil }
func Resolve(rootfs string, cfg root.Config, img ocispec.ImageConfig) (Process, error) {
	return Process{}, nil
}
func WriteFiles(rootfs string, files []root.File) error { return nil }

// Shares is the cpu weight of a guest, in the unit of cgroup v1's cpu.shares.
func Shares(g root.Guest) uint64 { return 1024 }
