//go:build pins

// Package roost's pinned libraries: what the design rests on but no package
// imports yet. They stand here so that all of them resolve together from the
// first day; a line leaves when a package imports the library for real. The
// build tag is never set: nothing of this is compiled.
package roost

import (
	_ "charm.land/lipgloss/v2"
	_ "github.com/anishathalye/porcupine"
	_ "github.com/caddyserver/certmagic"
	_ "github.com/charmbracelet/huh"
	_ "github.com/containerd/containerd/v2/core/metadata"
	_ "github.com/containerd/go-runc"
	_ "github.com/coreos/go-systemd/v22/activation"
	_ "github.com/florianl/go-nflog/v2"
	_ "github.com/google/go-cmp/cmp"
	_ "github.com/google/go-containerregistry/pkg/registry"
	_ "github.com/google/nftables"
	_ "github.com/miekg/dns"
	_ "github.com/minio/minio-go/v7"
	_ "github.com/moby/buildkit/solver"
	_ "github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/runtime-spec/specs-go"
	_ "github.com/pelletier/go-toml/v2"
	_ "github.com/prometheus/client_golang/prometheus"
	_ "github.com/robfig/cron/v3"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "github.com/spf13/cobra"
	_ "github.com/vishvananda/netlink"
	_ "go.etcd.io/etcd/client/v3"
	_ "go.etcd.io/etcd/server/v3/embed"
	_ "golang.zx2c4.com/wireguard/device"
	_ "golang.zx2c4.com/wireguard/wgctrl"
	_ "modernc.org/sqlite"
	_ "pgregory.net/rapid"

	_ "codeberg.org/go-pdf/fpdf"
	_ "github.com/coder/websocket"
	_ "github.com/oklog/ulid/v2"
	_ "github.com/superfly/fly-go"
	_ "golang.org/x/net/http2"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/sys/unix"
)
