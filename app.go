package roost

import "time"

// Org is an organisation: apps, networks and tokens belong to one.
type Org struct {
	Slug      OrgSlug
	Name      string
	CreatedAt time.Time
}

// App is a name under which machines run.
type App struct {
	Name      AppName
	ID        string // opaque, 16 characters
	Org       OrgSlug
	Network   NetworkName
	NetworkID uint32 // the network's part of every 6PN address in it
	CreatedAt time.Time
	Deleting  bool // accepted for deletion; takes no new machines
}

// Network is a private network. Its id is never used again, not even after
// its last app is gone.
type Network struct {
	Org       OrgSlug
	Name      NetworkName
	ID        uint32
	CreatedAt time.Time
}
