package v1alpha1

// Types of the conditions in status.conditions, a closed list.
const (
	// ConditionAccepted says whether the whole object was understood.
	// False (ReasonInvalid): the parts named in the message are enforced closed:
	// their Accept rules match nothing, their Deny and Pass rules deny.
	ConditionAccepted = "Accepted"
	// ConditionEnforced says whether everything that was understood has an
	// effect. False (ReasonNotSupported): the message names the fields that
	// this version accepts but does not enforce, such as domainNames.
	ConditionEnforced = "Enforced"
)

// Reasons of conditions, a closed list.
const (
	// ReasonValid: Accepted is True.
	ReasonValid = "Valid"
	// ReasonInvalid: Accepted is False; the message lists field paths.
	ReasonInvalid = "Invalid"
	// ReasonEnforced: Enforced is True.
	ReasonEnforced = "Enforced"
	// ReasonNotSupported: Enforced is False because of fields without effect.
	ReasonNotSupported = "NotSupported"
)
