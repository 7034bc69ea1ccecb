package lab

// Root is the directory of all labs; it exists only while there is one.
const Root = "/run/postern-lab"
