package buildkit

import (
	"runtime"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/sourcepolicy"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
)

// TestPolicy: a build gets images of our registry only from the repositories
// that it may build on, under every name that the store knows the registry by.
func TestPolicy(t *testing.T) {
	e := &Engine{o: Options{Registry: "registry.localhost", Addresses: []string{"127.0.0.1:4280", "localhost:4280"}}}
	policy := e.policy(Build{Repositories: []string{"shop"}})
	const digest = "@sha256:b340e992d6b7f9bde9c9d30ecd2aedba35bf77a4e877f528c333af507270767a"
	for image, want := range map[string]bool{
		"docker.io/library/debian:bookworm-slim": true,
		"docker.io/library/other:v1":             true,
		"registry.localhost/shop:v1":             true,
		"registry.localhost/shop" + digest:       true,
		"127.0.0.1:4280/shop:v1":                 true,
		"localhost:4280/shop:v1" + digest:        true,
		"registry.localhost/other:v1":            false,
		"registry.localhost/other" + digest:      false,
		"registry.localhost/shop2:v1":            false,
		"registry.localhost/shop/other:v1":       false,
		"registry.localhost:443/other:v1":        false,
		"registry.localhost:4280/other" + digest: false,
		"127.0.0.1:4280/other:v1":                false,
		"localhost:4280/other:v1":                false,
		"localhost:4280/other" + digest:          false,
		"localhost:4280/shop-of-others:v1":       false,
		"127.0.0.1:4280/others/shop:v1":          false,
	} {
		op := &pb.SourceOp{Identifier: "docker-image://" + image}
		_, err := sourcepolicy.NewEngine([]*spb.Policy{policy}).Evaluate(t.Context(), op)
		if got := err == nil; got != want {
			t.Errorf("%s: got allowed %t (%v), want %t", image, got, err, want)
		}
	}
	if e.policy(Build{}) != nil {
		t.Error("a build that may build on everything has a policy")
	}
}

// TestPlatforms: images are for this host's kind of machine; to ask for another
// is an error, not an image of the wrong kind.
func TestPlatforms(t *testing.T) {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	for _, tt := range []struct{ file, want string }{
		{"FROM debian", ""},
		{"FROM --platform=linux/" + runtime.GOARCH + " debian", ""},
		{"FROM --platform=linux debian", ""},
		{"FROM --platform=$BUILDPLATFORM debian AS build\nFROM --platform=${TARGETPLATFORM} debian", ""},
		{"FROM debian AS build\n\nFROM --platform=linux/" + other + " debian", "Dockerfile:3: FROM --platform=linux/" + other + ": images are built for this host"},
		{"FROM --platform=windows/amd64 debian", "Dockerfile:1: FROM --platform=windows/amd64: images are built for this host"},
		{"FROM --platform=linux/amd64/v1/x debian", "is no platform"},
		{"FORM debian", ""}, // the build says so
	} {
		b := Build{Name: "Dockerfile", Dockerfile: []byte(tt.file)}
		got := ""
		if err := b.check(); err != nil {
			got = err.Error()
		}
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.file, got, tt.want)
		}
	}
}
