//go:build !linux

package roost

import (
	"errors"
	"os"

	"github.com/roost-run/roost/internal/client"
)

func openTerminal() (master, slave *os.File, err error) {
	return nil, nil, errors.New("terminals need Linux")
}

func (s *streams) resize(client.Size) error { return nil }
