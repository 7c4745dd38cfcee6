//go:build !linux

package statics

import (
	"errors"
	"os"
)

// Only Linux can resolve paths beneath a directory as safely as images need.
var errNoFile = errors.New("no such file")

type dir struct{}

func openDir(string, string) (dir, error) { return dir{}, errNoFile }

func (dir) close()                        {}
func (dir) has(string) bool               { return false }
func (dir) open(string) (*os.File, error) { return nil, errNoFile }
