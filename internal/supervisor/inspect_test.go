package supervisor

import (
	"net"
	"os"
	"slices"
	"testing"

	"github.com/roost-run/roost/internal/orders"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	st, err := readStat(os.Getpid())
	if err != nil || st.parent != os.Getppid() || st.startedAt == 0 || st.rssPages == 0 || st.state == 'Z' {
		t.Errorf("own status: got %+v, %v", st, err)
	}
	for _, bad := range []string{"", "1 (a", "1 ) (", "1 (a) S 2 3"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("parse %q: got no error", bad)
		}
	}
	const odd = "7 (a) b (c) S 3 7 7 0 -1 0 0 0 0 0 5 6 0 0 20 0 1 0 99 1000 12 0 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 256"
	st, err = parseStat(odd)
	if err != nil || st.comm != "a) b (c" || st.parent != 3 || st.cpuTicks != 11 || st.startedAt != 99 || st.rssPages != 12 || st.exitCode != 256 {
		t.Errorf("parse: got %+v, %v", st, err)
	}
}

func TestListening(t *testing.T) {
	t.Parallel()
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		all := listening(os.Getpid())
		var found []orders.Listen
		for _, ino := range socketInodes(os.Getpid()) {
			if s, ok := all[ino]; ok {
				found = append(found, s)
			}
		}
		if want := (orders.Listen{Proto: network, Address: l.Addr().String()}); !slices.Contains(found, want) {
			t.Errorf("listening: got %v, want %v among them", found, want)
		}
	}
}

func FuzzParseProcAddress(f *testing.F) {
	f.Add("0100007F:1F90")
	f.Add("00000000000000000000000001000000:0035")
	f.Add(":")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseProcAddress(s)
		if err == nil && !a.IsValid() {
			t.Errorf("%q: got an invalid address without error", s)
		}
	})
}
