package auth

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	root "github.com/roost-run/roost"
)

var update = flag.Bool("update", false, "rewrite golden files")

// source is a Source in memory.
type source map[root.TokenHash]*root.Token

func (s source) Token(_ context.Context, h root.TokenHash) (*root.Token, error) { return s[h], nil }

// counting is randomness that everybody can repeat.
type counting struct{ next byte }

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.next
		c.next++
	}
	return len(p), nil
}

// vector is an example of a token for other implementations.
type vector struct {
	Scope  Scope  `json:"scope"`
	Random string `json:"random"` // the bytes that it was made from, hex
	Token  string `json:"token"`
	SHA256 string `json:"sha256"`
}

func TestVectors(t *testing.T) {
	var got []vector
	for i, scope := range []Scope{ScopeOrg, ScopeApp, ScopeDeploy, ScopeRead, ScopeMachine} {
		// From 200 on some bytes are 248 and larger, which are passed over.
		random := make([]byte, 64)
		if _, err := (&counting{byte(50 * i)}).Read(random); err != nil {
			t.Fatal(err)
		}
		s, err := New(scope, bytes.NewReader(random))
		if err != nil {
			t.Fatal(err)
		}
		h := s.Hash()
		got = append(got, vector{scope, hex.EncodeToString(random), string(s), hex.EncodeToString(h[:])})
		if parsed, err := Parse(string(s)); err != nil || parsed != s {
			t.Errorf("parse %s: got %q, %v", string(s), parsed, err)
		}
	}
	const file = "testdata/vectors.json"
	if *update {
		data, err := json.MarshalIndent(got, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var want []vector
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tokens changed (-want +got):\n%s", diff)
	}
}

func newToken(t *testing.T, scope Scope) Secret {
	t.Helper()
	s, err := New(scope, &counting{1})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNewRefusesUnknownScope(t *testing.T) {
	if _, err := New("admin", &counting{}); root.KindOf(err) != root.Invalid {
		t.Errorf("got %v, want kind invalid", err)
	}
	if _, err := New(ScopeOrg, bytes.NewReader(nil)); err == nil {
		t.Error("without randomness: got a token, want an error")
	}
}

func TestVerify(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	secret := newToken(t, ScopeDeploy)
	text := string(secret)
	good := Token{ID: "01J", Hash: secret.Hash(), Name: "ci", Scope: ScopeDeploy, Org: "personal", App: "shop"}
	with := func(f func(*Token)) *Token {
		c := good
		f(&c)
		return &c
	}
	tests := map[string]struct {
		text   string
		record *Token
		code   string
	}{
		"good":          {text, &good, ""},
		"not yet over":  {text, with(func(t *Token) { t.ExpiresAt = now.Add(1) }), ""},
		"expired":       {text, with(func(t *Token) { t.ExpiresAt = now }), CodeExpired},
		"revoked":       {text, with(func(t *Token) { t.RevokedAt = now }), CodeRevoked},
		"unknown":       {text, nil, CodeUnknown},
		"wrong record":  {text, with(func(t *Token) { t.Hash[3] ^= 1 }), CodeUnknown},
		"other scope":   {text, with(func(t *Token) { t.Scope = ScopeOrg }), CodeUnknown},
		"missing":       {"", nil, CodeMissing},
		"foreign":       {"fm2_abc", nil, CodeForeign},
		"cut":           {text[:len(text)-1], &good, CodeMalformed},
		"longer":        {text + "0", &good, CodeMalformed},
		"mistyped":      {strings.Replace(text, text[20:21], "-", 1), &good, CodeMalformed},
		"letter swap":   {text[:10] + "zz" + text[12:], &good, CodeMalformed},
		"scope swapped": {Prefix + "o" + text[len(Prefix)+1:], &good, CodeMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			v := Verifier{Source: source{secret.Hash(): test.record}, Now: func() time.Time { return now }}
			a, err := v.Verify(t.Context(), test.text)
			if test.code == "" {
				want := Actor{Name: "ci@shop", Scope: ScopeDeploy, Org: "personal", App: "shop", Origin: root.OriginUser, TokenID: "01J"}
				if err != nil || a != want {
					t.Fatalf("got %+v, %v, want %+v", a, err, want)
				}
				return
			}
			if root.KindOf(err) != root.Unauthenticated || root.CodeOf(err) != test.code {
				t.Errorf("got %v (%s), want kind unauthenticated, code %s", err, root.CodeOf(err), test.code)
			}
			if a != (Actor{}) {
				t.Errorf("actor: got %+v, want none", a)
			}
			message := root.MessageOf(err)
			if !strings.HasPrefix(message, "Authenticate: token validation error") || !strings.Contains(message, "roost token create") {
				t.Errorf("message: got %q, want the text that clients know and what to do", message)
			}
			if test.text != "" && strings.Contains(message, test.text) {
				t.Errorf("message shows the token: %q", message)
			}
		})
	}
}

type failing struct{}

func (failing) Token(context.Context, root.TokenHash) (*root.Token, error) {
	return nil, root.Errorf(root.Unavailable, "away")
}

func TestVerifyStoreAway(t *testing.T) {
	v := Verifier{Source: failing{}, Now: time.Now}
	if _, err := v.Verify(t.Context(), string(newToken(t, ScopeOrg))); root.KindOf(err) != root.Unavailable {
		t.Errorf("got %v, want kind unavailable: the token may be good", err)
	}
	if _, err := v.Verify(t.Context(), "roost_x"); root.KindOf(err) != root.Unauthenticated {
		t.Errorf("malformed token: got %v, want a refusal without a read", err)
	}
}

func TestSecretDoesNotPrint(t *testing.T) {
	s := newToken(t, ScopeOrg)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "token", s)
	for _, got := range []string{log.String(), fmt.Sprint(s), fmt.Sprintf("%v %s", s, s)} {
		if strings.Contains(got, string(s)) || !strings.Contains(got, "roost_o_") {
			t.Errorf("got %q, want only the beginning of the token", got)
		}
	}
}

func TestFromHeader(t *testing.T) {
	tests := map[string]struct {
		values  []string
		token   string
		foreign bool
	}{
		"none":             {nil, "", false},
		"empty":            {[]string{""}, "", false},
		"scheme only":      {[]string{"Bearer"}, "", false},
		"bearer":           {[]string{"Bearer roost_x"}, "roost_x", false},
		"any case":         {[]string{"bEARER   roost_x "}, "roost_x", false},
		"flyv1":            {[]string{"FlyV1 roost_x"}, "roost_x", false},
		"both schemes":     {[]string{"Bearer FlyV1 roost_x"}, "roost_x", false},
		"both, twice":      {[]string{"FlyV1 Bearer FlyV1 Bearer roost_x"}, "roost_x", false},
		"no scheme":        {[]string{"roost_x"}, "roost_x", false},
		"list, ours last":  {[]string{"FlyV1 fm2_a,fm2_b, roost_x"}, "roost_x", false},
		"list, ours first": {[]string{"FlyV1 roost_x,roost_y"}, "roost_x", false},
		"scheme in list":   {[]string{"FlyV1 fm2_a,Bearer roost_x"}, "roost_x", false},
		"foreign":          {[]string{"FlyV1 fm2_a,fm2_b"}, "", true},
		"other scheme":     {[]string{"Basic cm9vc3RfeDp5"}, "", true},
		"two headers":      {[]string{"Bearer fo1_a", "Bearer roost_x"}, "roost_x", false},
		"huge":             {[]string{"Bearer " + strings.Repeat("a", maxHeader)}, "", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			token, foreign := FromHeader(test.values)
			if token != test.token || foreign != test.foreign {
				t.Errorf("got %q, %v, want %q, %v", token, foreign, test.token, test.foreign)
			}
		})
	}
	v := Verifier{Source: source{}, Now: time.Now}
	if _, err := v.VerifyHeader(t.Context(), []string{"FlyV1 fm2_a"}); root.CodeOf(err) != CodeForeign {
		t.Errorf("foreign header: got code %q, want %q", root.CodeOf(err), CodeForeign)
	}
	if _, err := v.VerifyHeader(t.Context(), nil); root.CodeOf(err) != CodeMissing {
		t.Errorf("no header: got code %q, want %q", root.CodeOf(err), CodeMissing)
	}
}

func FuzzFromHeader(f *testing.F) {
	s, err := New(ScopeOrg, &counting{})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", "Bearer", "Bearer FlyV1 fm2_a,roost_o_b", "bearer " + string(s), ",,, ,", "FlyV1 \t roost_"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		token, foreign := FromHeader([]string{header})
		if token != "" && (foreign || !strings.HasPrefix(token, Prefix) || strings.ContainsAny(token, ",")) {
			t.Errorf("%q: got %q, foreign %v", header, token, foreign)
		}
		if again, _ := FromHeader([]string{"Bearer " + token}); again != token {
			t.Errorf("%q: token %q reads back as %q", header, token, again)
		}
		secret, err := Parse(token)
		if err != nil {
			if root.KindOf(err) != root.Unauthenticated {
				t.Errorf("%q: got %v", header, err)
			}
			return
		}
		if string(secret) != token || len(token) != tokenLen {
			t.Errorf("%q: parsed to %q", token, string(secret))
		}
	})
}

// TestPermissionTable walks all permissions with one actor of each sort; the
// golden file is the table that people review.
func TestPermissionTable(t *testing.T) {
	actors := []struct {
		name string
		a    Actor
	}{
		{"root", LocalRoot()},
		{"org", ActorOf(Token{Scope: ScopeOrg, Org: "personal", ID: "t"})},
		{"app", ActorOf(Token{Scope: ScopeApp, Org: "personal", App: "shop", ID: "t"})},
		{"deploy", ActorOf(Token{Scope: ScopeDeploy, Org: "personal", App: "shop", ID: "t"})},
		{"read-org", ActorOf(Token{Scope: ScopeRead, Org: "personal", ID: "t"})},
		{"read-app", ActorOf(Token{Scope: ScopeRead, Org: "personal", App: "shop", ID: "t"})},
		{"machine", MachineActor(&root.Machine{ID: "00000000000001", Org: "personal", App: "shop"})},
		{"nobody", Actor{}},
	}
	targets := []struct {
		name    string
		org     root.OrgSlug
		app     root.AppName
		machine root.MachineID
	}{
		{"own", "personal", "shop", "00000000000001"},
		{"sibling", "personal", "shop", "00000000000002"},
		{"other-app", "personal", "blog", "00000000000003"},
		{"other-org", "acme", "their", "00000000000004"},
		{"free-name", "", "nobodys", ""},
		{"org-wide", "personal", "", ""},
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-17s", "permission")
	for _, a := range actors {
		fmt.Fprintf(&b, " %-8s", a.name)
	}
	b.WriteString("\n")
	letters := "osabfw" // own, sibling, other app, other org, free name, whole organisation
	for p := range Permissions() {
		fmt.Fprintf(&b, "%-17s", p)
		for _, a := range actors {
			var cell strings.Builder
			for i, target := range targets {
				err := a.a.Allow(p, target.org, target.app, target.machine)
				switch {
				case err == nil:
					cell.WriteString(letters[i : i+1])
					if !a.a.Can(p) {
						t.Errorf("%s may %s to %s, but Can says no", a.name, p, target.name)
					}
				case root.KindOf(err) != root.Forbidden:
					t.Errorf("%s, %s, %s: got %v, want kind forbidden", a.name, p, target.name, err)
				}
			}
			fmt.Fprintf(&b, " %-8s", orDash(cell.String()))
		}
		b.WriteString("\n")
	}
	b.WriteString("\no own machine, s another of its app, a another app, b another organisation, f a name nobody has, w the whole organisation\n")
	got := trimLines(b.String())
	const file = "testdata/permissions.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the permission table changed (-want +got):\n%s", diff)
	}
}

func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// TestEveryPermissionStandsOnce guards the table against slips.
func TestEveryPermissionStandsOnce(t *testing.T) {
	seen := map[Permission]bool{}
	for _, r := range table {
		if seen[r.permission] {
			t.Errorf("%s stands twice", r.permission)
		}
		seen[r.permission] = true
		if r.grant == nil {
			t.Errorf("%s has no column", r.permission)
		}
		for s, g := range r.grant {
			if _, ok := scopeLetters[s]; !ok || g == no {
				t.Errorf("%s: scope %q, grant %d", r.permission, s, g)
			}
		}
	}
	if Known("machine:fly") || !Known(MachineStart) {
		t.Error("Known does not read the table")
	}
	if err := LocalRoot().Allow("machine:fly", "", "", ""); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a permission outside the table: got %v, want an error even for root", err)
	}
}

func TestActorContext(t *testing.T) {
	if _, ok := ActorFrom(t.Context()); ok {
		t.Error("an empty context has an actor")
	}
	a := LocalRoot()
	if got, ok := ActorFrom(WithActor(t.Context(), a)); !ok || got != a {
		t.Errorf("got %+v, %v, want %+v", got, ok, a)
	}
}

func BenchmarkVerify(b *testing.B) {
	s, err := New(ScopeDeploy, &counting{1})
	if err != nil {
		b.Fatal(err)
	}
	v := Verifier{Source: source{s.Hash(): {Hash: s.Hash(), Scope: ScopeDeploy, Org: "personal", App: "shop"}}, Now: time.Now}
	header := []string{"Bearer " + string(s)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.VerifyHeader(b.Context(), header); err != nil {
			b.Fatal(err)
		}
	}
}
