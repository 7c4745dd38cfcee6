package doctor

import (
	"crypto/x509"
	"net"
	"os"
	"strconv"

	"github.com/roost-run/roost/internal/config"
)

// https looks at what stands in the way of HTTPS and of certificates.
func https(c config.Config) Finding {
	const check = "HTTPS"
	if c.ACMERoot != "" && c.ACMEDirectory != "off" {
		data, err := os.ReadFile(c.ACMERoot)
		if err != nil {
			return Finding{check, Fatal, "acme_root cannot be read: " + err.Error(), "name a file with the authority's certificates, or leave acme_root empty"}
		}
		if !x509.NewCertPool().AppendCertsFromPEM(data) {
			return Finding{check, Fatal, "there is no certificate in acme_root, " + c.ACMERoot, "name a PEM file"}
		}
	}
	ports := map[int]string{} // what each stands for, by address
	for _, l := range c.Listen {
		port := l.Port
		if port == 0 {
			_, text, err := net.SplitHostPort(l.Addr)
			if err != nil {
				continue // config.Load has said so
			}
			if port, err = strconv.Atoi(text); err != nil {
				continue
			}
		}
		ports[port] = l.Addr
	}
	switch {
	case ports[443] == "":
		return Finding{check, Warn, "no address stands for port 443: apps answer plain HTTP only, and force_https has no effect", `set listen = [":80", ":443"]`}
	case ports[80] == "" && c.ACMEDirectory != "off":
		return Finding{check, Warn, "no address stands for port 80: certificates are obtained by TLS-ALPN-01 on port 443 only, and browsers that begin with http:// find nothing", `set listen = [":80", ":443"]`}
	case c.ACMEDirectory == "off":
		return Finding{check, OK, "on " + ports[443] + "; certificates are uploaded, or the local authority's", ""}
	}
	return Finding{check, OK, "on " + ports[443] + "; certificates for public hostnames by " + c.ACMEDirectory, ""}
}
