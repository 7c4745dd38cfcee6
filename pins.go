//go:build pins

// Package roost's pinned libraries: what the design rests on but no package
// imports yet. They stand here so that all of them resolve together from the
// first day; a line leaves when a package imports the library for real. The
// build tag is never set: nothing of this is compiled.
package roost

import (
	_ "charm.land/lipgloss/v2"
	_ "github.com/anishathalye/porcupine"
	_ "github.com/minio/minio-go/v7"
	_ "github.com/opencontainers/cgroups"
	_ "github.com/robfig/cron/v3"
	_ "golang.zx2c4.com/wireguard/device"
	_ "golang.zx2c4.com/wireguard/wgctrl"
)
