package agent

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/network"
)

func hostname(m *root.Machine) string {
	if h := m.Spec.Config.DNS.Hostname; h != "" {
		return h
	}
	return string(m.ID)
}

// platformEnv is the environment that the platform sets ("Private networking
// and machine runtime", section 6). It wins over the image's and the config's.
func platformEnv(m *root.Machine) map[string]string {
	env := map[string]string{
		"FLY_APP_NAME":        string(m.App),
		"FLY_MACHINE_ID":      string(m.ID),
		"FLY_ALLOC_ID":        string(m.ID),
		"FLY_MACHINE_VERSION": string(m.Spec.Instance),
		"FLY_REGION":          string(m.Region),
		"FLY_PRIVATE_IP":      m.Spec.Address.IPv6,
		"FLY_IMAGE_REF":       m.Spec.Image.Ref(),
		"FLY_VM_MEMORY_MB":    strconv.Itoa(m.Spec.Config.Guest.Memory.MiB()),
	}
	if g := m.Group(); g != "" {
		env["FLY_PROCESS_GROUP"] = g
	}
	return env
}

func resolvConf(d root.DNS) []byte {
	var b strings.Builder
	servers := d.Nameservers
	if len(servers) == 0 {
		servers = []string{network.DNSIPv6}
	}
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return []byte(b.String())
}

// names are the machine's own names for itself.
func names(m *root.Machine) string {
	if h := hostname(m); h != string(m.ID) {
		return string(m.ID) + " " + h
	}
	return string(m.ID)
}

// maxHosts bounds what is taken over of an image's /etc/hosts.
const maxHosts = 64 << 10

// hostsFile is the image's /etc/hosts with the machine's own names appended.
func hostsFile(rootfs string, m *root.Machine) []byte {
	var b strings.Builder
	b.Write(imageHosts(rootfs))
	if s := b.String(); s == "" {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	} else if !strings.HasSuffix(s, "\n") {
		b.WriteByte('\n')
	}
	ad := m.Spec.Address
	for _, l := range [][3]string{
		{"the machine's private address", ad.IPv6, "fly-local-6pn"},
		{"the machine", ad.IPv4, names(m)},
		{"where UDP services listen", network.SecondIPv4(ad.IPv4), "fly-global-services"},
	} {
		if l[1] != "" {
			fmt.Fprintf(&b, "# %s\n%s\t%s\n", l[0], l[1], l[2])
		}
	}
	return []byte(b.String())
}

// imageHosts reads the image's file beneath its root: the image may have made
// it a link to anywhere. Without one it is empty.
func imageHosts(rootfs string) []byte {
	r, err := os.OpenRoot(rootfs)
	if err != nil {
		return nil
	}
	defer func() { _ = r.Close() }() // only read
	fi, err := r.Stat("etc/hosts")
	if err != nil || !fi.Mode().IsRegular() { // a FIFO would block
		return nil
	}
	// A running machine of a persistent root file system may have put a FIFO
	// there since.
	f, err := r.OpenFile("etc/hosts", os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(f, maxHosts))
	if err != nil {
		return nil
	}
	return data
}
