package agent

import (
	"testing"

	"github.com/postern-dev/postern/internal/kube"
)

// TestProblemSaysWhere: a finding's place in its file gets to the user.
func TestProblemSaysWhere(t *testing.T) {
	for want, f := range map[string]kube.Finding{
		"shop.yaml:12: EgressPolicy shop/web spec.egress": {Object: kube.ObjectRef{Kind: "EgressPolicy", Namespace: "shop", Name: "web"}, Path: "spec.egress", File: "shop.yaml", Line: 12},
		"shop.yaml: Pod shop/web":                         {Object: kube.ObjectRef{Kind: "Pod", Namespace: "shop", Name: "web"}, File: "shop.yaml"},
		"shop.yaml:3":                                     {File: "shop.yaml", Line: 3},
		"shop.yaml":                                       {File: "shop.yaml"},
		"Namespace shop":                                  {Object: kube.ObjectRef{Kind: "Namespace", Name: "shop"}},
	} {
		if got := problemOf(f).About(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
