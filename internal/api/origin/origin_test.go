package origin

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	root "github.com/roost-run/roost"
)

func TestSetAndOf(t *testing.T) {
	for _, want := range []Origin{
		{Socket, User(0), ""},
		{TCP, "127.0.0.1", ""},
		{Internal, "172.19.0.4", "148e1234c56789"},
		{Machine, User(1000), root.MachineID("148e1234c56789")},
		{},
	} {
		h := http.Header{ // what a client would like to be
			"Roost-Front": {"api-sock"}, "Roost-Peer": {"uid:0", "uid:0"}, "Roost-Machine": {"another"}, "Roost-Anything": {"x"},
			"Accept": {"*/*"},
		}
		Set(h, want)
		got, passedOn := Of(h)
		if diff := cmp.Diff(want, got); diff != "" || !passedOn {
			t.Errorf("passed on: %t (-want +got)\n%s", passedOn, diff)
		}
		if h.Get("Roost-Anything") != "" || h.Get("Accept") != "*/*" {
			t.Errorf("headers: %v", h)
		}
	}
}

func TestOwnRequest(t *testing.T) {
	if o, passedOn := Of(http.Header{"Accept": {"*/*"}}); passedOn || o != (Origin{}) {
		t.Errorf("got %+v, %t, want none", o, passedOn)
	}
	if _, passedOn := Of(http.Header{"Roost-Front": {""}}); !passedOn {
		t.Error("a request whose front is empty was passed on, too")
	}
}

func TestLocalRoot(t *testing.T) {
	for o, want := range map[Origin]bool{
		{Front: Socket, Peer: "uid:0"}:    true,
		{Front: Socket, Peer: "uid:1000"}: false,
		{Front: Socket, Peer: "unknown"}:  false,
		{Front: Machine, Peer: "uid:0"}:   false,
		{Front: TCP, Peer: "uid:0"}:       false,
		{Peer: "uid:0"}:                   false,
		{}:                                false,
	} {
		if o.LocalRoot() != want {
			t.Errorf("%+v: got %t", o, !want)
		}
	}
}
