package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	root "github.com/roost-run/roost"
)

// Versions of the records. A new member may join a version; a changed or
// dropped one needs a new version, and a decoder that still reads the old.
const (
	orgVersion     = 1
	appVersion     = 1
	networkVersion = 1
	hostVersion    = 1
	specVersion    = 1
	statusVersion  = 1
	leaseVersion   = 1
	tokenVersion   = 1
	graveVersion   = 1
	secretsVersion = 1

	hostnameVersion = 1
	uploadVersion   = 1
	attemptVersion  = 1
	acmeVersion     = 1
	lockVersion     = 1

	releaseVersion      = 1
	progressVersion     = 1
	rolloutVersion      = 1
	releaseEventVersion = 1
)

// versioned is the beginning of every record.
type versioned struct {
	V int `json:"v"`
}

// decode reads a record of the given version into out.
func decode(data []byte, version int, out any) error {
	// As encode writes them: spares a load a second look at each record.
	if !bytes.HasPrefix(data, fmt.Appendf(nil, `{"v":%d,`, version)) {
		var v versioned
		if err := json.Unmarshal(data, &v); err != nil {
			return fmt.Errorf("unreadable record: %w", err)
		}
		if v.V != version {
			return fmt.Errorf("record has version %d, this program reads %d", v.V, version)
		}
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("unreadable record: %w", err)
	}
	return nil
}

// encode is for records, which always can be encoded.
func encode(record any) string {
	data, err := json.Marshal(record)
	if err != nil {
		panic(fmt.Sprintf("state: record %T: %v", record, err)) // a record with a member that JSON cannot hold
	}
	return string(data)
}

// utc returns t as records have it. A time that JSON cannot hold, from an
// absurd duration of a client's, becomes the last one that it can.
func utc(t time.Time) time.Time {
	if t = t.UTC(); t.Year() > 9999 {
		return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	return t
}

type orgRecord struct {
	V         int       `json:"v"`
	Slug      string    `json:"slug"`
	Name      string    `json:"name,omitzero"`
	CreatedAt time.Time `json:"created_at,omitzero"`
}

func fromOrg(o root.Org) orgRecord {
	return orgRecord{orgVersion, string(o.Slug), o.Name, utc(o.CreatedAt)}
}

func (r orgRecord) root() root.Org {
	return root.Org{Slug: root.OrgSlug(r.Slug), Name: r.Name, CreatedAt: r.CreatedAt}
}

type appRecord struct {
	V         int           `json:"v"`
	Name      string        `json:"name"`
	ID        string        `json:"id,omitzero"`
	Org       string        `json:"org"`
	Network   string        `json:"network,omitzero"`
	NetworkID uint32        `json:"network_id,omitzero"`
	CreatedAt time.Time     `json:"created_at,omitzero"`
	Deleting  bool          `json:"deleting,omitzero"`
	Hostnames []string      `json:"hostnames,omitempty"`
	Routes    []routeRecord `json:"routes,omitempty"`
	Release   int           `json:"release,omitzero"`
	Secrets   int           `json:"secrets,omitzero"`
}

type routeRecord struct {
	Paths   []string `json:"paths"`
	Methods []string `json:"methods,omitempty"`
	Group   string   `json:"group"`
	Shared  bool     `json:"shared,omitempty"`
}

func fromApp(a root.App) appRecord {
	return appRecord{
		appVersion, string(a.Name), a.ID, string(a.Org), string(a.Network), a.NetworkID, utc(a.CreatedAt), a.Deleting,
		a.Hostnames, convert(a.Routes, func(r root.Route) routeRecord { return routeRecord(r) }), a.Release, a.Secrets,
	}
}

func (r appRecord) root() root.App {
	return root.App{
		Name: root.AppName(r.Name), ID: r.ID, Org: root.OrgSlug(r.Org), Network: root.NetworkName(r.Network),
		NetworkID: r.NetworkID, CreatedAt: r.CreatedAt, Deleting: r.Deleting,
		Hostnames: r.Hostnames, Routes: convert(r.Routes, func(t routeRecord) root.Route { return root.Route(t) }), Release: r.Release, Secrets: r.Secrets,
	}
}

type networkRecord struct {
	V         int       `json:"v"`
	Org       string    `json:"org"`
	Name      string    `json:"name"`
	ID        uint32    `json:"id"`
	CreatedAt time.Time `json:"created_at,omitzero"`
}

func fromNetwork(n root.Network) networkRecord {
	return networkRecord{networkVersion, string(n.Org), string(n.Name), n.ID, utc(n.CreatedAt)}
}

func (r networkRecord) root() root.Network {
	return root.Network{Org: root.OrgSlug(r.Org), Name: root.NetworkName(r.Name), ID: r.ID, CreatedAt: r.CreatedAt}
}

type hostRecord struct {
	V           int    `json:"v"`
	ID          string `json:"id"`
	Name        string `json:"name,omitzero"`
	Region      string `json:"region,omitzero"`
	Arch        string `json:"arch,omitzero"`
	CPUs        int    `json:"cpus,omitzero"`
	Memory      int64  `json:"memory_bytes,omitzero"`
	NetworkPart uint32 `json:"network_part,omitzero"`
}

func fromHost(h root.Host) hostRecord {
	return hostRecord{hostVersion, string(h.ID), h.Name, string(h.Region), h.Arch, h.CPUs, int64(h.Memory), h.NetworkPart}
}

func (r hostRecord) root() root.Host {
	return root.Host{
		ID: root.HostID(r.ID), Name: r.Name, Region: root.Region(r.Region), Arch: r.Arch,
		CPUs: r.CPUs, Memory: root.Bytes(r.Memory), NetworkPart: r.NetworkPart,
	}
}

type leaseRecord struct {
	V           int       `json:"v"`
	Nonce       string    `json:"nonce"`
	ExpiresAt   time.Time `json:"expires_at"`
	Owner       string    `json:"owner,omitzero"`
	Description string    `json:"description,omitzero"`
	Version     string    `json:"version,omitzero"`
}

func fromLease(l root.Lease) leaseRecord {
	return leaseRecord{leaseVersion, l.Nonce, utc(l.ExpiresAt), l.Owner, l.Description, string(l.Version)}
}

func (r leaseRecord) root() root.Lease {
	return root.Lease{Nonce: r.Nonce, ExpiresAt: r.ExpiresAt, Owner: r.Owner, Description: r.Description, Version: root.InstanceID(r.Version)}
}

type tokenRecord struct {
	V         int       `json:"v"`
	ID        string    `json:"id"`
	Name      string    `json:"name,omitzero"`
	Scope     string    `json:"scope"`
	Org       string    `json:"org,omitzero"`
	App       string    `json:"app,omitzero"`
	Machine   string    `json:"machine,omitzero"`
	CreatedBy string    `json:"created_by,omitzero"`
	CreatedAt time.Time `json:"created_at,omitzero"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// fromToken leaves out the hash: it is the key.
func fromToken(t root.Token) tokenRecord {
	return tokenRecord{
		tokenVersion, t.ID, t.Name, string(t.Scope), string(t.Org), string(t.App), string(t.Machine),
		t.CreatedBy, utc(t.CreatedAt), utc(t.ExpiresAt), utc(t.RevokedAt),
	}
}

func (r tokenRecord) root(hash root.TokenHash) root.Token {
	return root.Token{
		ID: r.ID, Hash: hash, Name: r.Name, Scope: root.Scope(r.Scope), Org: root.OrgSlug(r.Org), App: root.AppName(r.App),
		Machine: root.MachineID(r.Machine), CreatedBy: r.CreatedBy, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt, RevokedAt: r.RevokedAt,
	}
}

// graveRecord is a machine that was.
type graveRecord struct {
	V      int          `json:"v"`
	Spec   specRecord   `json:"spec"`
	Status statusRecord `json:"status"`
}

func (r graveRecord) root() *root.Machine {
	m := r.Spec.root()
	m.Status = r.Status.root()
	m.Status.State = root.StateDestroyed
	return m
}
