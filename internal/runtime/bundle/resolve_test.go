package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	root "github.com/roost-run/roost"
)

// rootfs makes a root file system: a name ending in / is a directory, content
// beginning with "->" a link, a name beginning with + executable.
func rootfs(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		name, executable := strings.CutPrefix(name, "+")
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		target, link := strings.CutPrefix(content, "->")
		var err error
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case link:
			err = os.Symlink(target, path)
		case executable:
			err = os.WriteFile(path, []byte(content), 0o755)
		default:
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// debian is as much of an image as the tests need.
func debian(t *testing.T) string {
	t.Helper()
	return rootfs(t, map[string]string{
		"bin":            "->usr/bin",
		"+usr/bin/sh":    "\x7fELF",
		"+usr/bin/site":  "#!/bin/sh\n",
		"+usr/bin/lost":  "#!/opt/none -x\n",
		"+usr/bin/dos":   "#!/bin/sh\r\necho\r\n",
		"usr/bin/data":   "no program",
		"usr/bin/dir/":   "",
		"+app/run":       "\x7fELF",
		"+app/bin/tool":  "\x7fELF",
		"usr/bin/loop":   "->loop",
		"usr/bin/away":   "->/../../../../../../bin/sh",
		"usr/bin/broken": "->/nowhere",
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/sh\n" +
			"nohome:x:40:40:::\nbad line\nodd:x:many:1::/:/bin/sh\n",
		"etc/group": "root:x:0:\nwww:x:33:\nextra:x:70:root,www\nmore:x:71:www\n",
	})
}

func TestCommand(t *testing.T) {
	img := ocispec.ImageConfig{Entrypoint: []string{"entry"}, Cmd: []string{"cmd", "arg"}}
	for name, tt := range map[string]struct {
		cfg  root.Config
		want []string
	}{
		"image":            {root.Config{}, []string{"entry", "cmd", "arg"}},
		"exec beats all":   {root.Config{Init: root.Init{Exec: []string{"x"}, Entrypoint: []string{"y"}, Cmd: []string{"z"}}}, []string{"x"}},
		"cmd only":         {root.Config{Init: root.Init{Cmd: []string{"z"}}}, []string{"entry", "z"}},
		"entrypoint only":  {root.Config{Init: root.Init{Entrypoint: []string{"y"}}}, []string{"y", "cmd", "arg"}},
		"both":             {root.Config{Init: root.Init{Entrypoint: []string{"y"}, Cmd: []string{"z"}}}, []string{"y", "z"}},
		"process":          {root.Config{Process: &root.Process{Cmd: []string{"p"}}, Init: root.Init{Cmd: []string{"z"}}}, []string{"entry", "p"}},
		"process's exec":   {root.Config{Process: &root.Process{Exec: []string{"p"}}, Init: root.Init{Cmd: []string{"z"}}}, []string{"p"}},
		"process and init": {root.Config{Process: &root.Process{Entrypoint: []string{"p"}}, Init: root.Init{Cmd: []string{"z"}}}, []string{"p", "z"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Command(tt.cfg, img)); diff != "" {
				t.Errorf("command (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	dir := debian(t)
	cfg := root.Config{
		Env:     map[string]string{"B": "config", "C": "config"},
		Process: &root.Process{User: "www", Env: map[string]string{"C": "process"}},
	}
	img := ocispec.ImageConfig{
		Cmd: []string{"site", "--port", "80"}, WorkingDir: "srv", User: "root",
		Env: []string{"PATH=/nothing:/usr/bin", "A=image", "B=image"},
	}
	got, err := Resolve(dir, cfg, img)
	if err != nil {
		t.Fatal(err)
	}
	want := Process{
		Args: []string{"site", "--port", "80"}, Dir: "/srv", UID: 33, GID: 33, Groups: []uint32{70, 71}, Home: "/var/www", User: "www",
		Env: []string{"PATH=/nothing:/usr/bin", "A=image", "B=config", "C=process", "HOME=/var/www"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("process (-want +got):\n%s", diff)
	}
	if img.Env[2] != "B=image" {
		t.Errorf("the image's environment was changed: %v", img.Env)
	}
}

func TestResolveMistakes(t *testing.T) {
	dir := debian(t)
	for name, tt := range map[string]struct {
		args []string
		user string
		want string // in the message; "" is no mistake
	}{
		"found in PATH":         {[]string{"sh"}, "", ""},
		"absolute":              {[]string{"/bin/sh"}, "", ""},
		"relative":              {[]string{"./run"}, "", ""},
		"relative below":        {[]string{"bin/tool"}, "", ""},
		"link stays inside":     {[]string{"away"}, "", ""},
		"script":                {[]string{"site"}, "", ""},
		"nothing":               {nil, "", "nothing to run"},
		"empty":                 {[]string{""}, "", "empty"},
		"not in PATH":           {[]string{"gunicorn"}, "", "command not found: \"gunicorn\""},
		"not there":             {[]string{"/bin/gunicorn"}, "", "command not found: \"/bin/gunicorn\""},
		"below a file":          {[]string{"/bin/sh/x"}, "", "command not found"},
		"dangling link":         {[]string{"broken"}, "", "command not found"},
		"link to itself":        {[]string{"/bin/loop"}, "", "cannot run"},
		"not executable":        {[]string{"data"}, "", "permission denied"},
		"directory":             {[]string{"/usr/bin/dir"}, "", "it is a directory"},
		"interpreter missing":   {[]string{"lost"}, "", "interpreter \"/opt/none\" does not exist"},
		"lines end in CR LF":    {[]string{"dos"}, "", "CR LF"},
		"user by name":          {[]string{"sh"}, "www", ""},
		"user by number":        {[]string{"sh"}, "12345", ""},
		"user and group":        {[]string{"sh"}, "12345:extra", ""},
		"no such user":          {[]string{"sh"}, "somebody", "no such user: \"somebody\""},
		"no such group":         {[]string{"sh"}, "www:somewhere", "no such group: \"somewhere\""},
		"user with broken line": {[]string{"sh"}, "odd", "no such user"},
		"number too large":      {[]string{"sh"}, "4294967295", "no such user"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Resolve(dir, root.Config{}, ocispec.ImageConfig{Cmd: tt.args, User: tt.user, WorkingDir: "/app"})
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if !root.IsKind(err, root.Invalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v (kind %v), want %q, kind %v", err, root.KindOf(err), tt.want, root.Invalid)
			}
		})
	}
}

func TestLookupUser(t *testing.T) {
	dir := debian(t)
	for spec, want := range map[string]User{
		"":            {Home: "/root", Groups: []uint32{70}},
		"root":        {Home: "/root", Groups: []uint32{70}},
		"33":          {UID: 33, GID: 33, Groups: []uint32{70, 71}, Home: "/var/www"},
		"www:root":    {UID: 33, GID: 0, Home: "/var/www"},
		"www:9":       {UID: 33, GID: 9, Home: "/var/www"},
		"7":           {UID: 7, GID: 7, Home: "/"},
		"7:70":        {UID: 7, GID: 70, Home: "/"},
		"nohome":      {UID: 40, GID: 40, Home: "/"},
		"0:extra":     {UID: 0, GID: 70, Home: "/root"},
		"999999:more": {UID: 999999, GID: 71, Home: "/"},
	} {
		got, err := LookupUser(dir, spec)
		if err != nil {
			t.Errorf("user %q: %v", spec, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("user %q (-want +got):\n%s", spec, diff)
		}
	}
	// An image made from nothing still has a root.
	if got, err := LookupUser(t.TempDir(), "root"); err != nil || got.Home != "/root" {
		t.Errorf("root of an empty image: got %+v, %v", got, err)
	}
}

func TestEnvironmentDefaults(t *testing.T) {
	got := environment(root.Config{Init: root.Init{TTY: true}, Env: map[string]string{"FLY": "1"}}, ocispec.ImageConfig{}, map[string]string{"FLY": "2"}, "/home/x")
	want := []string{"FLY=2", "PATH=" + DefaultPath, "HOME=/home/x", "TERM=xterm"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestWriteFiles(t *testing.T) {
	outside := t.TempDir()
	precious := filepath.Join(outside, "precious")
	if err := os.WriteFile(precious, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := rootfs(t, map[string]string{
		"var/run":     "->/run",
		"run/":        "",
		"etc/old":     "before, and longer",
		"etc/escape":  "->" + precious,
		"etc/up":      "->../../../../../.." + precious,
		"etc/outside": "->" + outside,
		"etc/file":    "x",
	})
	for name, tt := range map[string]struct {
		file root.File
		at   string // where it ends up; "" is Invalid
	}{
		"plain":             {root.File{GuestPath: "/etc/new", Content: []byte("n")}, "etc/new"},
		"new directories":   {root.File{GuestPath: "/a/b/c", Content: []byte("n"), Mode: 0o600}, "a/b/c"},
		"replaces":          {root.File{GuestPath: "/etc/old", Content: []byte("after")}, "etc/old"},
		"through a link":    {root.File{GuestPath: "/var/run/x/y", Content: []byte("n")}, "run/x/y"},
		"mode beyond umask": {root.File{GuestPath: "/etc/script", Content: []byte("#!"), Mode: 0o4777}, "etc/script"},
		"dots":              {root.File{GuestPath: "/../../etc/dots", Content: []byte("n")}, "etc/dots"},
		"link out":          {root.File{GuestPath: "/etc/escape", Content: []byte("n")}, ""},
		"relative link out": {root.File{GuestPath: "/etc/up", Content: []byte("n")}, ""},
		"directory out":     {root.File{GuestPath: "/etc/outside/x", Content: []byte("n")}, ""},
		"below a file":      {root.File{GuestPath: "/etc/file/x", Content: []byte("n")}, ""},
		"on a directory":    {root.File{GuestPath: "/etc", Content: []byte("n")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := WriteFiles(dir, []root.File{tt.file})
			if tt.at == "" {
				if !root.IsKind(err, root.Invalid) {
					t.Errorf("got %v, want kind %v", err, root.Invalid)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, tt.at)
				data, err := os.ReadFile(path)
				if err != nil || string(data) != string(tt.file.Content) {
					t.Errorf("content: got %q, %v", data, err)
				}
				want := tt.file.Mode
				if want == 0 {
					want = 0o644
				}
				var st unix.Stat_t
				if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != want {
					t.Errorf("mode: got %o, %v, want %o", st.Mode&0o7777, err, want)
				}
			}
			if data, err := os.ReadFile(precious); err != nil || string(data) != "safe" {
				t.Fatalf("written outside: %q, %v", data, err)
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
				t.Fatalf("made outside: %v, %v", entries, err)
			}
		})
	}
}

// A fifo or a device of an image is not opened for writing.
func TestWriteFilesOnAFIFO(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := WriteFiles(dir, []root.File{{GuestPath: "/fifo", Content: []byte("x")}})
	if !root.IsKind(err, root.Invalid) {
		t.Errorf("got %v, want kind %v", err, root.Invalid)
	}
	if err := CheckCommand(dir, []string{"/fifo"}, "/", nil); !root.IsKind(err, root.Invalid) {
		t.Errorf("run: got %v, want kind %v", err, root.Invalid)
	}
}

// A persistent root file system may have a running machine, which puts
// something else where a file was just seen: the node of a disk, here a fifo.
func TestWriteFilesOnWhatIsSwapped(t *testing.T) {
	dir := rootfs(t, map[string]string{"file": ""})
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, fifo, unix.AT_FDCWD, filepath.Join(dir, "file"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	for range 5000 {
		err := WriteFiles(dir, []root.File{{GuestPath: "/file", Content: []byte("x"), Mode: 0o644}})
		if err != nil && !root.IsKind(err, root.Invalid) {
			t.Errorf("got %v, want success or kind %v", err, root.Invalid)
			break
		}
	}
	close(stop)
	<-stopped
	var st unix.Stat_t
	if err := unix.Fstat(int(reader.Fd()), &st); err != nil || st.Mode&0o777 != 0o600 {
		t.Errorf("the fifo was taken for the file: mode %o, %v", st.Mode&0o777, err)
	}
}

func FuzzUser(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\n", "root:x:0:\n", "root:root")
	f.Add("a:b:1:2:c:d:e:f\n::::\n", "\n:::,,\n", "1:2")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(
			os.WriteFile(filepath.Join(dir, "etc", "passwd"), []byte(passwd), 0o600),
			os.WriteFile(filepath.Join(dir, "etc", "group"), []byte(group), 0o600),
		); err != nil {
			t.Fatal(err)
		}
		u, err := LookupUser(dir, spec)
		if err == nil && (u.UID == 1<<32-1 || u.GID == 1<<32-1 || u.Home == "") {
			t.Errorf("user %q: got %+v", spec, u)
		}
	})
}
