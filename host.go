package roost

// Host is a machine of ours: one Linux server.
type Host struct {
	ID     HostID
	Name   string
	Region Region
	Arch   string // "amd64"
	CPUs   int
	Memory Bytes // what machines may use together
	// NetworkPart is the host's part of every 6PN address on it.
	NetworkPart uint32
}
