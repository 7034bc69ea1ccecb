package bpf

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
)

func TestLoad(t *testing.T) {
	var objs PosternObjects
	err := LoadPosternObjects(&objs, &ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		n := len(ve.Log)
		t.Fatalf("%v\n%v", err, ve.Log[max(0, n-60):])
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Log(objs.FromPod.VerifierLog)
	t.Log(objs.LookAfterDnat.VerifierLog)
	objs.Close()
}
