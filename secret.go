package roost

import (
	"strings"
	"time"
)

// Secret is what may be told of an app's secret: everything but its value.
type Secret struct {
	Name      string
	Digest    string // 16 hex digits: changes with the value, does not give it away
	CreatedAt time.Time
	UpdatedAt time.Time
	Version   int  // of the set in which it got its value
	Staged    bool // set, but no release has brought it to the machines yet; reads fill it in
}

// SecretSet is one version of all the secrets of an app. It never changes: a
// secret that is set or unset makes the next version.
type SecretSet struct {
	App       AppName
	Version   int // 1, 2, 3 ... in the app
	Secrets   []Secret
	Sealed    []byte // the values; package seal
	CreatedAt time.Time
	CreatedBy string
}

// Bounds of secrets: each has to fit into one environment variable, and all
// of them into one record.
const (
	MaxSecretName  = 128
	MaxSecretValue = 64 * KiB
	MaxSecrets     = 512 * KiB
)

// ValidateSecret reports why a secret cannot be an environment variable. The
// error never shows the value.
func ValidateSecret(name, value string) error {
	if !secretName(name) {
		return Errorf(Invalid, "secret %q: a name has letters, digits and underscores, does not begin with a digit, and has at most %d characters", clip(name), MaxSecretName)
	}
	if strings.HasPrefix(name, "FLY_") && !allowedFlyEnv(name) {
		return Errorf(Invalid, "secret %s: names beginning FLY_ are set by the platform", name)
	}
	if strings.ContainsRune(value, 0) {
		return Errorf(Invalid, "secret %s: the value has a NUL byte, which no environment variable can hold; store it as base64", name)
	}
	if Bytes(len(value)) > MaxSecretValue {
		return Errorf(TooLarge, "secret %s: the value is larger than %s", name, MaxSecretValue)
	}
	return nil
}

func secretName(name string) bool {
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != "" && len(name) <= MaxSecretName
}
