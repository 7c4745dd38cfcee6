package controlplane

import (
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/roost-run/roost/internal/config"
)

// dockerHub is what Docker Hub's images are named after; it answers elsewhere.
const dockerHub = "docker.io"

var dockerHubHosts = []string{"docker.io", "registry-1.docker.io", "index.docker.io"}

// registries are the configured mirrors and credentials, as the image store
// asks for them.
type registries []config.Registry

// mirrors lists those of a registry.
func (r registries) mirrors(host string) []string {
	for _, reg := range r {
		if reg.Host == host {
			return reg.Mirrors
		}
	}
	return nil
}

// plainHTTP lists the registries without TLS.
func (r registries) plainHTTP() []string {
	var hosts []string
	for _, reg := range r {
		if reg.PlainHTTP {
			hosts = append(hosts, reg.Host)
		}
	}
	return hosts
}

// credentials returns user and password for a host. The password is read each
// time: it can be changed without a restart.
func (r registries) credentials(host string) (user, password string, err error) {
	for _, reg := range r {
		if reg.Username == "" || !slices.Contains(reachedAt(reg), host) {
			continue
		}
		switch {
		case reg.PasswordFile != "":
			data, err := os.ReadFile(reg.PasswordFile)
			if err != nil {
				return "", "", fmt.Errorf("password of registry %s: %w", reg.Host, err)
			}
			password = strings.TrimSpace(string(data))
		case reg.PasswordEnv != "":
			password = os.Getenv(reg.PasswordEnv)
		}
		return reg.Username, password, nil
	}
	return "", "", nil
}

// reachedAt lists the hosts that a registry's credentials are for.
func reachedAt(reg config.Registry) []string {
	switch {
	case len(reg.Mirrors) > 0:
		var hosts []string
		for _, m := range reg.Mirrors {
			if u, err := url.Parse(m); err == nil {
				hosts = append(hosts, u.Host)
			}
		}
		return hosts
	case reg.Host == dockerHub:
		return dockerHubHosts
	}
	return []string{reg.Host}
}
