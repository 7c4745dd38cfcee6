package route

import (
	"strings"
	"testing"

	root "github.com/roost-run/roost"
)

func TestGroup(t *testing.T) {
	t.Parallel()
	app := &root.App{Name: "shop", Routes: []root.Route{
		{Paths: []string{"/receipts/public/**"}, Group: "app", Shared: true},
		{Paths: []string{"/receipts/**", "/purchases/*/receipt/"}, Methods: []string{"GET", "POST"}, Group: "pdf"},
		{Paths: []string{"/"}, Methods: []string{"PURGE"}, Group: "cache"},
		{Paths: []string{"/*/x"}, Group: "any"},
	}}
	table := NewTable(app, nil)
	for _, c := range []struct{ method, path, want string }{
		{"GET", "/receipts/1", "pdf"},
		{"GET", "/receipts/1/2/3", "pdf"},
		{"GET", "/receipts/", "pdf"},
		{"GET", "/receipts", "pdf"},
		{"HEAD", "/receipts/1", "pdf"},
		{"DELETE", "/receipts/1", ""},
		{"GET", "/receipts/public/a", "app"},
		{"GET", "/receiptsx/1", ""},
		{"GET", "/x/receipts/1", ""},
		{"GET", "/purchases/7/receipt/", "pdf"},
		{"GET", "/purchases/7/receipt", "pdf"},
		{"GET", "/purchases//receipt", ""},
		{"GET", "/purchases/7/8/receipt", ""},
		{"GET", "/purchases/7/receipt/8", ""},
		{"GET", "/", ""},
		{"PURGE", "/", "cache"},
		{"PURGE", "/a", ""},
		{"GET", "/é/x", "any"},
		{"GET", "x", ""},
		{"OPTIONS", "*", ""},
		{"GET", "", ""},
	} {
		if got := table.Group(c.method, c.path); got != c.want {
			t.Errorf("%s %s: got group %q, want %q", c.method, c.path, got, c.want)
		}
	}
	if got := NewTable(&root.App{}, nil).Group("GET", "/"); got != "" {
		t.Errorf("without routes: got %q", got)
	}
}

func ids(targets []Target) (out string) {
	for _, t := range targets {
		out += string(t.Machine.ID)
	}
	return out
}

// Machines of a group that a route names take nothing else, unless it is one of
// the app's ordinary groups, too.
func TestWithin(t *testing.T) {
	t.Parallel()
	machine := func(id, group string) *root.Machine {
		m := &root.Machine{ID: root.MachineID(id)}
		m.Spec.Config.Metadata = map[string]string{root.MetadataProcessGroup: group}
		m.Spec.Config.Services = []root.Service{{InternalPort: 8080, Ports: []root.Port{{Port: 80}, {Port: 8000, End: 8010}}}}
		return m
	}
	machines := []*root.Machine{machine("a", "app"), machine("b", "pdf"), machine("c", "mail"), machine("d", "app"), machine("e", "")}
	table := NewTable(&root.App{Routes: []root.Route{
		{Paths: []string{"/pdf/**"}, Group: "pdf"}, {Paths: []string{"/mail"}, Group: "mail", Shared: true}, {Paths: []string{"/gone"}, Group: "gone"},
	}}, machines)
	for group, want := range map[string]string{"": "acde", "pdf": "b", "mail": "c", "gone": "acde"} {
		for _, port := range []int{80, 8005} {
			if got := ids(table.Within(group, port)); got != want {
				t.Errorf("group %q, port %d: got %s, want %s", group, port, got, want)
			}
		}
	}
	if got := ids(table.Port(80)); got != "abcde" {
		t.Errorf("all: got %s", got)
	}
	if got := ids(table.Within("pdf", 443)); got != "" {
		t.Errorf("other port: got %s", got)
	}
	if got := ids(NewTable(&root.App{}, machines).Within("", 80)); got != "abcde" {
		t.Errorf("without routes: got %s", got)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	machine := func(image, instance string, edit func(*root.Machine)) *root.Machine {
		m := &root.Machine{Origin: root.OriginUser}
		m.Spec.Image.Digest, m.Spec.Instance = root.Digest(image), root.InstanceID(instance)
		m.Status.State = root.StateSuspended
		m.Spec.Config.Statics = []root.Static{{GuestPath: "/app", URLPrefix: "/s/"}}
		edit(m)
		return m
	}
	keep := func(*root.Machine) {}
	for name, c := range map[string]struct {
		machines []*root.Machine
		want     string
	}{
		"none":              {nil, ""},
		"one set for many":  {[]*root.Machine{machine("a", "1", keep), machine("a", "2", keep)}, "a"},
		"without statics":   {[]*root.Machine{machine("a", "1", func(m *root.Machine) { m.Spec.Config.Statics = nil })}, ""},
		"newer first":       {[]*root.Machine{machine("a", "1", keep), machine("b", "2", keep)}, "ba"},
		"release counts":    {[]*root.Machine{machine("a", "1", func(m *root.Machine) { m.Spec.Release = 2 }), machine("b", "2", func(m *root.Machine) { m.Spec.Release = 1 })}, "ab"},
		"coming up":         {[]*root.Machine{machine("a", "1", keep), machine("b", "2", func(m *root.Machine) { m.Status.State = root.StateCreated })}, "ab"},
		"failed":            {[]*root.Machine{machine("a", "1", keep), machine("b", "2", func(m *root.Machine) { m.Status.State = root.StateFailed })}, "ab"},
		"cordoned":          {[]*root.Machine{machine("a", "1", keep), machine("b", "2", func(m *root.Machine) { m.Spec.Cordoned = true })}, "ab"},
		"made by the app":   {[]*root.Machine{machine("a", "1", keep), machine("b", "2", func(m *root.Machine) { m.Origin = root.OriginApp })}, "ab"},
		"on its way out":    {[]*root.Machine{machine("a", "1", keep), machine("b", "2", func(m *root.Machine) { m.Spec.Destroy = &root.Destroy{} })}, "a"},
		"best of its image": {[]*root.Machine{machine("a", "1", keep), machine("b", "2", keep), machine("a", "3", keep)}, "ab"},
	} {
		var images []string
		for _, s := range NewTable(&root.App{}, c.machines).Files {
			images = append(images, string(s.Image))
		}
		if got := strings.Join(images, ""); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	m := machine("a", "1", func(m *root.Machine) {
		m.Spec.Config.Statics = []root.Static{{GuestPath: "/x", URLPrefix: "/"}, {GuestPath: "/y", URLPrefix: "static"}, {GuestPath: "/z", URLPrefix: "/static/deep/"}}
	})
	var mounts []string
	for _, f := range NewTable(&root.App{}, []*root.Machine{m}).Files[0].Mounts {
		mounts = append(mounts, f.Prefix+"="+f.Guest)
	}
	if got, want := strings.Join(mounts, " "), "/static/deep=/z /static=/y =/x"; got != want {
		t.Errorf("mounts: got %q, want %q", got, want)
	}
}

func BenchmarkGroup(b *testing.B) {
	table := NewTable(&root.App{Routes: []root.Route{
		{Paths: []string{"/receipts/**", "/purchases/*/receipt/"}, Methods: []string{"GET", "POST"}, Group: "pdf"},
		{Paths: []string{"/reports/*/*/export"}, Group: "reports"},
	}}, nil)
	b.ReportAllocs()
	for b.Loop() {
		if table.Group("GET", "/purchases/1234/receipt/") != "pdf" || table.Group("GET", "/products/1234/") != "" {
			b.Fatal("wrong group")
		}
	}
}

// FuzzGroup: any path is matched without a panic, and with or without a slash
// at its end alike.
func FuzzGroup(f *testing.F) {
	f.Add("/a/*/b", "/a/x/b")
	f.Add("/a/**", "/a")
	f.Add("**", "//")
	f.Fuzz(func(t *testing.T, pattern, path string) {
		table := NewTable(&root.App{Routes: []root.Route{{Paths: []string{pattern}, Group: "g"}}}, nil)
		got := table.Group("GET", path)
		if len(path) > 0 && path[len(path)-1] != '/' && got != table.Group("GET", path+"/") {
			t.Errorf("pattern %q: %q and %q differ", pattern, path, path+"/")
		}
	})
}
