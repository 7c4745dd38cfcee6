//go:build !linux

package main

import (
	"errors"
	"time"
)

var errLinux = errors.New("Roost runs on Linux only")

func inNamespace(string, func() error) error { return errLinux }

func cpuTime(int) (time.Duration, error) { return 0, errLinux }
