package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	root "github.com/roost-run/roost"
)

// ring returns a keyring of keys that are one byte repeated.
func ring(t *testing.T, bytesOf ...byte) *Keyring {
	t.Helper()
	var lines []string
	for _, b := range bytesOf {
		line, err := NewKey(bytes.NewReader(bytes.Repeat([]byte{b}, keySize)))
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	k, err := Parse([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestVectors: boxes and digests that were written once stay readable, and
// another implementation can check itself against them.
func TestVectors(t *testing.T) {
	k := ring(t, 7)
	nonce := []byte("twelve bytes")
	for _, v := range []struct{ plain, context, box string }{
		{"", "", vectorEmpty},
		{"hunter2-is-a-password", "secrets\x00shop\x001", vectorValue},
	} {
		box, err := k.seal(bytes.NewReader(nonce), []byte(v.plain), []byte(v.context))
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(box); got != v.box {
			t.Errorf("seal %q: got %s, want %s", v.plain, got, v.box)
		}
		raw, err := hex.DecodeString(v.box)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.Open(raw, []byte(v.context)); err != nil || string(got) != v.plain {
			t.Errorf("open: got %q, %v, want %q", got, err, v.plain)
		}
	}
	if got := k.CurrentKey(); got != vectorKeyID {
		t.Errorf("key id: got %s, want %s", got, vectorKeyID)
	}
	if got := k.Digest("app", "KEY", "value"); got != vectorDigest {
		t.Errorf("digest: got %s, want %s", got, vectorDigest)
	}
}

func TestOpenRefuses(t *testing.T) {
	k := ring(t, 1)
	good, err := k.Seal([]byte("plain-canary"), []byte("here"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if got, err := k.Open(bad, []byte("here")); err == nil {
			t.Fatalf("byte %d changed: got %q, want an error", i, got)
		}
	}
	for n := range good {
		if _, err := k.Open(good[:n], []byte("here")); err == nil {
			t.Fatalf("cut to %d bytes: got no error", n)
		}
	}
	if _, err := k.Open(good, []byte("there")); err == nil {
		t.Error("another context: got no error")
	}
	_, err = ring(t, 2).Open(good, []byte("here"))
	if root.KindOf(err) != root.Unavailable || !strings.Contains(err.Error(), KeyID(good)) {
		t.Errorf("another key: got %v, want Unavailable that names key %s", err, KeyID(good))
	}
}

// TestRotation: the new key seals, the old one still opens.
func TestRotation(t *testing.T) {
	old := ring(t, 1)
	box, err := old.Seal([]byte("value"), nil)
	if err != nil {
		t.Fatal(err)
	}
	both := ring(t, 2, 1)
	if got, err := both.Open(box, nil); err != nil || string(got) != "value" {
		t.Errorf("with both keys: got %q, %v", got, err)
	}
	again, err := both.Seal([]byte("value"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if KeyID(again) != both.CurrentKey() || KeyID(again) == KeyID(box) {
		t.Errorf("sealed with key %s, want the new one, %s", KeyID(again), both.CurrentKey())
	}
	if got, err := ring(t, 2).Open(again, nil); err != nil || string(got) != "value" {
		t.Errorf("with the new key alone: got %q, %v", got, err)
	}
}

func TestDigest(t *testing.T) {
	k := ring(t, 1)
	if k.Digest("a", "bc") == k.Digest("ab", "c") {
		t.Error("the borders between the parts do not count")
	}
	if again := ring(t, 1); again.Digest("a") != k.Digest("a") || k.Digest("a") == k.Digest("b") || k.Digest("a") == ring(t, 2).Digest("a") {
		t.Error("a digest has to change with the value and the key, and with nothing else")
	}
	if n := len(k.Digest("a")); n != 16 {
		t.Errorf("got %d digits, want 16", n)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets.key")
	first, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	box, err := first.Seal([]byte("value"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil { // as a careless restore leaves it
		t.Fatal(err)
	}
	second, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := second.Open(box, nil); err != nil || string(got) != "value" {
		t.Errorf("after a restart: got %q, %v", got, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v, want mode 0600", fi.Mode(), err)
	}
	for name, content := range map[string]string{"empty": "", "no key": "# nothing\n", "another thing": "hunter2", "short": keyPrefix + "AAAA"} {
		bad := filepath.Join(t.TempDir(), "secrets.key")
		if err := os.WriteFile(bad, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(bad); err == nil || !strings.Contains(err.Error(), bad) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want an error that names the file and shows nothing of it", name, err)
		}
	}
}

// TestPrintsNothing: neither keys nor values show when somebody prints them.
func TestPrintsNothing(t *testing.T) {
	k := ring(t, 'K')
	s := NewScrubber("canary-value")
	for _, v := range []any{k, s, struct{ K *Keyring }{k}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, "canary") || strings.Contains(got, "KKKK") || strings.Contains(got, "75, 75") || strings.Contains(got, "0x4b, 0x4b") {
				t.Errorf("%s shows %s", verb, got)
			}
		}
	}
}

func TestScrub(t *testing.T) {
	const password = `p@ss w0rd/"x"`
	s := NewScrubber(password, "8080", "short", "canary-longer", "canary-longer-still", "-----BEGIN KEY-----\nMIIBVwIBADANBgkq\r\nQUJD\n-----END KEY-----\n", "")
	for in, want := range map[string]string{
		"connect with " + password + " now":  "connect with [secret] now",
		"port 8080, a short word":            "port 8080, a short word",
		"x=canary-longer-still;":             "x=[secret];",
		"x=canary-longer-stil;":              "x=[secret]-stil;",
		"MIIBVwIBADANBgkq":                   "[secret]",
		"QUJD":                               "QUJD",
		"postgres://u:p%40ss+w0rd%2F%22x%22": "postgres://u:[secret]",
		`{"k":"p@ss w0rd/\"x\""}`:            `{"k":"[secret]"}`,
		"b64 " + base64.StdEncoding.EncodeToString([]byte("canary-longer")): "b64 [secret]==",
		"canary-longercanary-longer":                                        "[secret][secret]",
		"":                                                                  "",
	} {
		if got := s.Scrub(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if NewScrubber("a", "true", "") != nil {
		t.Error("nothing to mask should be the nil scrubber")
	}
	if got := (*Scrubber)(nil).Scrub("text"); got != "text" {
		t.Errorf("the nil scrubber: got %q", got)
	}
}

func FuzzOpen(f *testing.F) {
	k, err := Parse([]byte(keyPrefix + base64.RawStdEncoding.EncodeToString(bytes.Repeat([]byte{7}, keySize))))
	if err != nil {
		f.Fatal(err)
	}
	box, err := k.Seal([]byte("value"), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(box)
	f.Add([]byte{})
	f.Add(box[:headSize])
	f.Fuzz(func(t *testing.T, data []byte) {
		if plain, err := k.Open(data, []byte("context")); err == nil {
			t.Errorf("opened %q from what nobody sealed", plain)
		}
	})
}

// The vectors: the key is 32 bytes of 7, the nonce "twelve bytes".
const (
	vectorEmpty  = "016251c2b62f3d37467477656c76652062797465735b9d458a9c526436fa0c9d494c47b6c7"
	vectorValue  = "016251c2b62f3d37467477656c7665206279746573e0a2df4e7b7aaa87c04dcfae78002fea8cf17044c46066e3866ca0c50ccf5ec6a1ad9bf94c"
	vectorKeyID  = "6251c2b62f3d3746"
	vectorDigest = "bd0752efa29cb882"
)
