package datapath

import (
	"reflect"
	"strings"
	"testing"

	"github.com/postern-dev/postern/internal/datapath/bpf"
	"github.com/postern-dev/postern/internal/datapath/mapstate"
	"github.com/postern-dev/postern/internal/flow"
)

// TestMapstateLayout compares the types that mapstate writes with those that
// are generated from the C: size, and each field's name, offset and size.
func TestMapstateLayout(t *testing.T) {
	for _, tc := range []struct{ ours, kernels any }{
		{struct{ W mapstate.Line }{}, bpf.PosternTrieLine{}},
		{mapstate.Entry{}, bpf.PosternEntry{}},
		{mapstate.ServiceKey{}, bpf.PosternServiceKey{}},
		{mapstate.Service{}, bpf.PosternService{}},
	} {
		ours, kernels := reflect.TypeOf(tc.ours), reflect.TypeOf(tc.kernels)
		if ours.Size() != kernels.Size() {
			t.Errorf("%s has %d bytes, %s %d", ours, ours.Size(), kernels, kernels.Size())
		}
		want := map[string]reflect.StructField{}
		for f := range kernels.Fields() {
			want[strings.ToLower(f.Name)] = f
		}
		for f := range ours.Fields() {
			k, ok := want[strings.ToLower(f.Name)]
			if !ok || k.Offset != f.Offset || k.Type.Size() != f.Type.Size() {
				t.Errorf("%s.%s at %d with %d bytes; the kernel's: %v at %d", ours, f.Name, f.Offset, f.Type.Size(), k.Name, k.Offset)
			}
		}
	}
}

// TestReasons compares package flow's reasons with the C's.
func TestReasons(t *testing.T) {
	for c, r := range map[bpf.PosternReason]flow.Reason{
		bpf.PosternReasonREASON_SELF: flow.ReasonSelf, bpf.PosternReasonREASON_VLAN: flow.ReasonVLAN,
		bpf.PosternReasonREASON_SOURCE: flow.ReasonSource, bpf.PosternReasonREASON_NO_FLOW: flow.ReasonNoFlow,
		bpf.PosternReasonREASON_TABLE_FULL: flow.ReasonTableFull, bpf.PosternReasonREASON_NO_RULESET: flow.ReasonNoRuleset,
		bpf.PosternReasonREASON_SHARED_ADDRESS: flow.ReasonSharedAddress,
		bpf.PosternReasonREASON_RELATED:        flow.ReasonRelated, bpf.PosternReasonREASON_MAX: flow.ReasonMax,
	} {
		if uint32(c) != uint32(r) {
			t.Errorf("reason %v is %d here and %d in bpf/types.h", r, uint32(r), uint32(c))
		}
	}
}
