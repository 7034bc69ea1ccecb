package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BenchmarkOneLabel changes one pod's label among 10,000 pods and 5,000 policies
// in 150 files, and takes the change over.
func BenchmarkOneLabel(b *testing.B) {
	dir := b.TempDir()
	pods := func(file int, version string) string {
		var out strings.Builder
		for i := range 100 {
			v := "0"
			if i == 0 {
				v = version
			}
			fmt.Fprintf(&out, "---\napiVersion: v1\nkind: Pod\nmetadata: {namespace: ns%d, name: p%d, labels: {app: a%d, version: %q}}\n"+
				"spec: {nodeName: n%d, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}\nstatus: {podIP: 10.%d.%d.1}\n",
				file, i, i%10, v, i%8, file, i)
		}
		return out.String()
	}
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for f := range 100 {
		put(fmt.Sprintf("pods%d.yaml", f), pods(f, "0"))
	}
	for f := range 50 {
		var out strings.Builder
		for i := range 100 {
			out.WriteString("---\n" + strings.ReplaceAll(strings.ReplaceAll(isolate, "shop", fmt.Sprintf("ns%d", f)), "name: isolate", fmt.Sprintf("name: p%d", i)))
		}
		put(fmt.Sprintf("policies%d.yaml", f), out.String())
	}
	s, err := Load(dir, Options{Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	s.Flush()
	n := 0
	for b.Loop() {
		n++
		b.StopTimer()
		put("pods7.yaml", pods(7, fmt.Sprint("v", n)))
		b.StartTimer()
		s.rescan(map[string]bool{"pods7.yaml": true}, false)
		if ch := s.Flush(); len(ch.Pods) != 1 {
			b.Fatalf("got %d pods", len(ch.Pods))
		}
	}
}
