//go:build !linux

package agent

import "os"

func mountTmpfs(dir string, _, _ int) error { return os.MkdirAll(dir, 0o700) }

func unmountTmpfs(string) error { return nil }
