package swap

import root "github.com/roost-run/roost"

type Swap struct {
	Kind   string /* "zram", "file" or "none" */
	Size   root.Bytes
	Device string
}

// Setup: mode "auto", "zram", "file:SIZE" or "none"; total sizes zram (what machines may use together); dir holds the file.
func Setup(mode string, total root.Bytes, dir string) (*Swap, error) { return &Swap{Kind: "none"}, nil }
func (s *Swap) Close() error                                         { return nil }
