package auth

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strings"

	root "github.com/roost-run/roost"
)

// Prefix begins every token.
const Prefix = "roost_"

const (
	randomLen   = 32
	checksumLen = 6
	tokenLen    = len(Prefix) + 2 + randomLen + checksumLen

	digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// Token is what is known of a token; Scope, what it is for.
type (
	Token = root.Token
	Scope = root.Scope
)

// The scopes.
const (
	ScopeOrg     = root.ScopeOrg
	ScopeApp     = root.ScopeApp
	ScopeDeploy  = root.ScopeDeploy
	ScopeRead    = root.ScopeRead
	ScopeMachine = root.ScopeMachine
)

var scopeLetters = map[Scope]byte{ScopeOrg: 'o', ScopeApp: 'a', ScopeDeploy: 'd', ScopeRead: 'r', ScopeMachine: 'm'}

// Secret is the text of a token. It prints as its first characters only.
type Secret string

// String hides all but the beginning.
func (s Secret) String() string {
	if len(s) != tokenLen {
		return "[malformed token]"
	}
	return string(s[:len(Prefix)+2+4]) + "..."
}

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Hash is what is stored of the token.
func (s Secret) Hash() root.TokenHash { return sha256.Sum256([]byte(s)) }

// New makes a token of a scope from a source of randomness: crypto/rand's.
func New(scope Scope, random io.Reader) (Secret, error) {
	letter, ok := scopeLetters[scope]
	if !ok {
		return "", root.Errorf(root.Invalid, "token scope %q is not one of org, app, deploy, read, machine", scope)
	}
	text := make([]byte, 0, tokenLen)
	text = append(text, Prefix...)
	text = append(text, letter, '_')
	var buf [randomLen]byte
	for n := 0; n < randomLen; {
		if _, err := io.ReadFull(random, buf[:]); err != nil {
			return "", fmt.Errorf("make token: %w", err)
		}
		for _, b := range buf {
			// 248 is the largest multiple of 62 in a byte: no digit is likelier.
			if b < 248 && n < randomLen {
				text = append(text, digits[b%62])
				n++
			}
		}
	}
	return Secret(append(text, checksum(text)...)), nil
}

func checksum(text []byte) []byte {
	sum := crc32.ChecksumIEEE(text)
	out := bytes.Repeat([]byte{'0'}, checksumLen)
	for i := checksumLen - 1; sum > 0; i-- {
		out[i] = digits[sum%62]
		sum /= 62
	}
	return out
}

// Parse checks the form of a token: prefix, length, alphabet, checksum. The
// error has kind Unauthenticated and code CodeForeign or CodeMalformed.
func Parse(text string) (Secret, error) {
	if !strings.HasPrefix(text, Prefix) {
		return "", refuse(CodeForeign, "it is not a token of Roost, those begin with "+Prefix)
	}
	body := len(Prefix) + 2
	if len(text) != tokenLen || !strings.ContainsRune("oadrm", rune(text[len(Prefix)])) || text[body-1] != '_' ||
		strings.Trim(text[body:], digits) != "" {
		return "", refuse(CodeMalformed, "it is cut or mistyped")
	}
	if subtle.ConstantTimeCompare(checksum([]byte(text[:tokenLen-checksumLen])), []byte(text[tokenLen-checksumLen:])) != 1 {
		return "", refuse(CodeMalformed, "it is cut or mistyped")
	}
	return Secret(text), nil
}

// Codes of refused tokens, for logs; users see the text.
const (
	CodeMissing   = "token_missing"
	CodeForeign   = "token_foreign"
	CodeMalformed = "token_malformed"
	CodeUnknown   = "token_unknown" // never issued, or deleted
	CodeRevoked   = "token_revoked"
	CodeExpired   = "token_expired"
)

// refuse makes the error for a token that does not count. It begins with the
// text that clients of the Machines API know.
func refuse(code, why string) error {
	return &root.Error{Kind: root.Unauthenticated, Code: code,
		Message: "Authenticate: token validation error: " + why + "; make one with \"roost token create\" on the host and send it as \"Authorization: Bearer <token>\""}
}
