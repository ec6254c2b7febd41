// The Router's work with Go's standard library: JWT through a cache, session table, activity note, ReverseProxy.
package main

import (
	"bufio"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type session struct {
	Id, Owner string
	Sandbox   int
	host      string
}

type given struct {
	Sandboxes        []int
	PublicKey, Token string
	Dropped          []string
	Sessions         []*session
}

type claims struct {
	Sub, Aud, Iss string
	Exp           int64
}

type router struct {
	given    given
	key      *rsa.PublicKey
	sessions map[string]*session
	tokens   sync.RWMutex
	known    map[string]claims
	activity sync.Mutex
	active   map[string]struct{}
	ids      atomic.Uint64
	buffers  sync.Pool
	proxy    *httputil.ReverseProxy
}

func (r *router) verify(authorization string) (claims, error) {
	var c claims
	parts := strings.Split(strings.TrimPrefix(authorization, "Bearer "), ".")
	if len(parts) != 3 {
		return c, errors.New("not a JWT")
	}
	var head struct{ Alg string }
	raw, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil || json.Unmarshal(raw, &head) != nil || head.Alg != "RS256" {
		return c, errors.New("algorithm")
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return c, err
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(r.key, crypto.SHA256, sum[:], signature); err != nil {
		return c, err
	}
	raw, err = base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, err
	}
	if c.Aud != "agentcube" || c.Iss != "bench" {
		return c, errors.New("audience or issuer")
	}
	return c, nil
}

func (r *router) caller(authorization string) (string, bool) {
	r.tokens.RLock()
	c, ok := r.known[authorization]
	r.tokens.RUnlock()
	if !ok {
		var err error
		if c, err = r.verify(authorization); err != nil {
			return "", false
		}
		r.tokens.Lock()
		r.known[authorization] = c
		r.tokens.Unlock()
	}
	return c.Sub, time.Now().Unix() < c.Exp
}

func (r *router) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	owner, ok := r.caller(q.Header.Get("Authorization"))
	if !ok {
		http.Error(w, "unauthenticated", 401)
		return
	}
	held := r.sessions[q.Header.Get("X-Agentcube-Session-Id")]
	if held == nil || held.Owner != owner {
		http.Error(w, "no such session", 404)
		return
	}
	r.activity.Lock()
	r.active[held.Id] = struct{}{}
	r.activity.Unlock()
	id := "bench-" + strconv.FormatUint(r.ids.Add(1), 16)
	q.Header.Set("X-Request-Id", id)
	w.Header().Set("X-Request-Id", id)
	w.Header().Set("X-Agentcube-Session-Id", held.Id)
	r.proxy.ServeHTTP(w, q)
}

func (r *router) rewrite(p *httputil.ProxyRequest) {
	held := r.sessions[p.In.Header.Get("X-Agentcube-Session-Id")]
	out := p.Out
	out.URL.Scheme, out.URL.Host, out.Host = "http", held.host, held.host
	if at := strings.Index(out.URL.Path, "/invocations/"); at >= 0 {
		out.URL.Path = out.URL.Path[at+len("/invocations"):]
	}
	for _, name := range r.given.Dropped {
		out.Header.Del(name)
	}
	out.Header.Set("Authorization", r.given.Token)
	p.SetXForwarded()
}

func (r *router) Get() []byte  { return r.buffers.Get().([]byte) }
func (r *router) Put(b []byte) { r.buffers.Put(b) }

func (r *router) flush() {
	for range time.Tick(time.Second) {
		r.activity.Lock()
		r.active = map[string]struct{}{}
		r.activity.Unlock()
	}
}

func main() {
	r := &router{sessions: map[string]*session{}, known: map[string]claims{}, active: map[string]struct{}{}}
	line, err := bufio.NewReader(os.Stdin).ReadBytes('\n')
	if err != nil || json.Unmarshal(line, &r.given) != nil {
		panic("bad input")
	}
	block, _ := pem.Decode([]byte(r.given.PublicKey))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		panic(err)
	}
	r.key = key.(*rsa.PublicKey)
	for _, held := range r.given.Sessions {
		held.host = fmt.Sprintf("127.0.0.1:%d", r.given.Sandboxes[held.Sandbox])
		r.sessions[held.Id] = held
	}
	r.buffers.New = func() any { return make([]byte, 32<<10) }
	r.proxy = &httputil.ReverseProxy{
		Rewrite:       r.rewrite,
		FlushInterval: -1,
		BufferPool:    r,
		Transport: &http.Transport{
			DisableCompression:  true,
			MaxIdleConns:        1024,
			MaxIdleConnsPerHost: 64,
			IdleConnTimeout:     4 * time.Second,
		},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go r.flush()
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 75 * time.Second}
	panic(server.Serve(listener))
}
