package auth

import (
	"fmt"
	"iter"
	"slices"

	root "github.com/roost-run/roost"
)

// Permission is what a route needs: "machine:start".
type Permission string

// The permissions. Of the first group each is about the cluster, of the second
// about an organisation, of the third about an app, of the fourth about a
// machine.
const (
	OrgCreate   Permission = "org:create"
	HostRead    Permission = "host:read" // hosts and regions
	ImageRemove Permission = "image:remove"
	ImageList   Permission = "image:list" // of all apps

	OrgRead     Permission = "org:read"
	AppList     Permission = "app:list" // the answer holds only apps with AppRead
	AppCreate   Permission = "app:create"
	TokenRead   Permission = "token:read"
	TokenCreate Permission = "token:create"
	TokenRevoke Permission = "token:revoke"

	AppRead       Permission = "app:read"
	AppUpdate     Permission = "app:update"
	AppDelete     Permission = "app:delete"
	LogRead       Permission = "log:read"
	ImageRead     Permission = "image:read"
	ImagePull     Permission = "image:pull" // bring in from another registry
	ImagePush     Permission = "image:push" // load or push one of ours
	ImageBuild    Permission = "image:build"
	SecretRead    Permission = "secret:read" // names and digests: no route returns a value
	SecretWrite   Permission = "secret:write"
	MachineCreate Permission = "machine:create"
	CertRead      Permission = "cert:read"
	CertWrite     Permission = "cert:write" // hostnames and certificates
	ReleaseRead   Permission = "release:read"
	ReleaseCreate Permission = "release:create" // deploy, roll back, cancel, plan

	MachineRead     Permission = "machine:read" // wait, events, versions, ps, metadata included
	MachineUpdate   Permission = "machine:update"
	MachineStart    Permission = "machine:start"
	MachineStop     Permission = "machine:stop"
	MachineRestart  Permission = "machine:restart"
	MachineSuspend  Permission = "machine:suspend"
	MachineSignal   Permission = "machine:signal"
	MachineCordon   Permission = "machine:cordon"
	MachineDestroy  Permission = "machine:destroy"
	MachineExec     Permission = "machine:exec"
	MachineLease    Permission = "machine:lease"
	MachineMetadata Permission = "machine:metadata" // writing it
	MachineBusy     Permission = "machine:busy"
	MachineDial     Permission = "machine:dial" // reach its ports past the proxy
)

// grant is what a scope may do with a permission.
type grant uint8

const (
	no   grant = iota
	yes        // on everything in the actor's organisation, app or machine
	self       // on its own machine only
)

// row is the line of a permission in the table.
type row struct {
	permission Permission
	// of is what the permission is about: an actor bound to an app needs that
	// app as target of what is about an app or a machine.
	of    level
	grant map[Scope]grant
}

type level uint8

const (
	ofCluster level = iota
	ofOrg
	ofApp
	ofMachine
)

// The columns that rows share.
var (
	rootOnly   = map[Scope]grant{}
	orgOnly    = map[Scope]grant{ScopeOrg: yes}
	everybody  = map[Scope]grant{ScopeOrg: yes, ScopeApp: yes, ScopeDeploy: yes, ScopeRead: yes, ScopeMachine: yes}
	readers    = map[Scope]grant{ScopeOrg: yes, ScopeApp: yes, ScopeDeploy: yes, ScopeRead: yes}
	writers    = map[Scope]grant{ScopeOrg: yes, ScopeApp: yes, ScopeDeploy: yes}
	deployers  = map[Scope]grant{ScopeOrg: yes, ScopeDeploy: yes}
	writerSelf = map[Scope]grant{ScopeOrg: yes, ScopeApp: yes, ScopeDeploy: yes, ScopeMachine: self}
	selfOnly   = map[Scope]grant{ScopeMachine: self}
)

// table is the whole of who may what. Root of the host may everything and is
// not in it.
var table = []row{
	{OrgCreate, ofCluster, rootOnly},
	{HostRead, ofCluster, readers},
	{ImageRemove, ofCluster, orgOnly},
	{ImageList, ofCluster, deployers},

	{OrgRead, ofOrg, readers},
	{AppList, ofOrg, everybody},
	{AppCreate, ofOrg, orgOnly},
	{TokenRead, ofOrg, orgOnly},
	{TokenCreate, ofOrg, orgOnly},
	{TokenRevoke, ofOrg, orgOnly},

	{AppRead, ofApp, everybody},
	{AppUpdate, ofApp, writers},
	{AppDelete, ofApp, writers},
	{LogRead, ofApp, readers},
	{ImageRead, ofApp, readers},
	{ImagePull, ofApp, writers},
	{ImagePush, ofApp, deployers},
	{ImageBuild, ofApp, deployers},
	{SecretRead, ofApp, readers},
	{SecretWrite, ofApp, writers},
	{MachineCreate, ofApp, writers},
	{CertRead, ofApp, readers},
	{CertWrite, ofApp, writers},
	{ReleaseRead, ofApp, readers},
	{ReleaseCreate, ofApp, writers},

	{MachineRead, ofMachine, everybody},
	{MachineUpdate, ofMachine, writers},
	{MachineStart, ofMachine, writers},
	{MachineStop, ofMachine, writerSelf},
	{MachineRestart, ofMachine, writers},
	{MachineSuspend, ofMachine, writerSelf},
	{MachineSignal, ofMachine, writers},
	{MachineCordon, ofMachine, writers},
	{MachineDestroy, ofMachine, writers},
	{MachineExec, ofMachine, writers},
	{MachineLease, ofMachine, writers},
	{MachineMetadata, ofMachine, writers},
	{MachineBusy, ofMachine, selfOnly},
	{MachineDial, ofMachine, writers},
}

// Permissions yields every permission.
func Permissions() iter.Seq[Permission] {
	return func(yield func(Permission) bool) {
		for _, r := range table {
			if !yield(r.permission) {
				return
			}
		}
	}
}

// Known reports whether p stands in the table. A route with another one is a
// mistake.
func Known(p Permission) bool { return find(p) != nil }

func find(p Permission) *row {
	i := slices.IndexFunc(table, func(r row) bool { return r.permission == p })
	if i < 0 {
		return nil
	}
	return &table[i]
}

// Can reports whether the actor has p on anything at all: what can be said of
// a request before its target is known.
func (a Actor) Can(p Permission) bool {
	r := find(p)
	return a.Root && r != nil || r != nil && r.grant[a.Scope] != no
}

// Allow returns nil if the actor may do p to the organisation, app or machine;
// "" where the permission is about something larger, or where the target does
// not exist and so belongs to nobody. Otherwise the error has kind Forbidden
// and says what would do.
func (a Actor) Allow(p Permission, org root.OrgSlug, app root.AppName, machine root.MachineID) error {
	r := find(p)
	switch {
	case r == nil:
		return fmt.Errorf("permission %q is not in the table", p)
	case a.Root:
		return nil
	case r.grant[a.Scope] == no:
		return root.Errorf(root.Forbidden, "%s may not do this (%s): use a token of scope %s", a.who(), p, r.scopes())
	case r.of == ofCluster:
		return nil
	case org != "" && org != a.Org:
		return root.Errorf(root.Forbidden, "%s belongs to organisation %s and may not do this (%s) in another one", a.who(), a.Org, p)
	case a.App != "" && app != a.App && (app != "" || r.of >= ofApp):
		return root.Errorf(root.Forbidden, "%s is for app %s and may not do this (%s) elsewhere", a.who(), a.App, p)
	case r.grant[a.Scope] == self && machine != a.Machine:
		return root.Errorf(root.Forbidden, "%s may do this (%s) to itself only: use a token of scope %s", a.who(), p, r.scopes())
	}
	return nil
}

func (a Actor) who() string {
	switch {
	case a.Scope == "":
		return "an unknown caller"
	case a.TokenID == "" && a.Machine != "":
		return "machine " + string(a.Machine)
	}
	return fmt.Sprintf("this token (scope %s)", a.Scope)
}

// scopes names the scopes that have the permission, for people.
func (r *row) scopes() string {
	names := ""
	for _, s := range []Scope{ScopeOrg, ScopeApp, ScopeDeploy, ScopeRead} {
		if r.grant[s] == yes {
			if names != "" {
				names += " or "
			}
			names += string(s)
		}
	}
	if names == "" {
		return "none, only root on the host may"
	}
	return names
}
