"""What a teacher would say before each call: printed with --explain, by show.step() and show.explain().

The key is the heading that the script prints, without a domain before it, or a call's name.
"""

EXPLANATIONS = {
    # 01, 02
    "account key": (
        "To a CA you are a key pair, and nothing else: no password, no e-mail address that counts. The "
        "private half signs every request and never leaves this machine. The thumbprint is a hash of the "
        "public half; with it you will prove that it was you who changed the DNS."
    ),
    "certificate key and CSR": (
        "The certificate gets a key pair of its own. A CSR is a small form, signed with it: these names, "
        "this public key. It is made here and handed in at the very end, in 06, when control of the names "
        "is proven."
    ),
    # 03
    "directory": (
        "The one address that a client has to know. It lists where everything else is, so that a CA can "
        "move it. A plain GET, as nothing in it is secret or anybody's own. (RFC 8555 section 7.1.1.)"
    ),
    "terms of service": (
        "The CA wants its terms agreed to, and only a person can do that. So you write it into the "
        "settings, and the script passes it on."
    ),
    "newNonce": (
        "A nonce is a number that the CA takes once. It is part of what is signed, so that nobody who "
        "overhears a request can send it a second time. Each answer brings the next one; this call is for "
        "the first. (RFC 8555 sections 6.5 and 7.2.)"
    ),
    "newAccount": (
        "The first signed request. A JWS has three parts: a protected header (who signs, how, to which "
        "address, with which nonce), the payload (what you want), and the signature over both. Here the "
        "header holds the whole public key (jwk), as the CA has never seen it. It answers with the "
        "account's address, which from now on says who signs (kid)."
    ),
    "account update": "What is sent replaces what the CA has noted; what is not sent stays.",
    "account, read back with a POST-as-GET": (
        "Reading is signed too: a POST with an empty payload. So a CA shows an account to its owner, and to "
        "nobody else."
    ),
    # 04
    "the order of an earlier run": (
        "An order lives for days, and CAs count how many you make. So one that was begun and can still be "
        "used is gone on with."
    ),
    "newOrder": (
        "You name the names, and the CA answers with an order: a form that it keeps for you. It holds an "
        "authorization for each name, which is a proof that it wants to see, and the address where the CSR "
        "will be handed in."
    ),
    # 05
    "order": (
        "What state is it in? An order is pending, then ready, then for a moment processing, and at last "
        "valid. Or invalid."
    ),
    "authorizations": (
        "For each name the CA offers ways to prove control of it, and you choose one. dns-01 is the one "
        "that works for wildcards and needs no server: put a value that the CA chose with you into the DNS, "
        "where only the owner of the zone can put one."
    ),
    "TXT records": (
        "The value is a hash of the CA's token and your key's thumbprint, so it is of use to you alone. "
        "Then we ask every authoritative name server whether it has it. The CA will look once only, and you "
        "do not choose which server it asks."
    ),
    "challenges": (
        "Now the CA may look: an empty object {} is all there is to say, as it knows the token and your "
        "key. It asks the DNS, from several places in the world if it is a public one."
    ),
    "pending, until every name is valid": (
        "Looking takes the CA some seconds. We ask for the order, which becomes ready when all its proofs "
        "are valid, and wait as long between two questions as the CA says."
    ),
    "clean-up": (
        "The records have no further use, whether the proof is done or was broken off. We delete those "
        "that we made, by the ids that we noted when we made them, and no others."
    ),
    # 06
    "finalize": (
        "The CSR at last. The CA compares its names with the order's, and signs a certificate for its "
        "public key. The private key stays where it is: a CA that wants to see it is no CA."
    ),
    "processing, then valid": (
        "Issuing takes the CA a moment. When the order is valid it says where the certificate is."
    ),
    "certificate": (
        "A chain in PEM: your certificate first, then the one that signed it, and so on; the root is not "
        "sent, as whoever trusts it has it already. Before it replaces anything we see whether it is what "
        "we asked for."
    ),
    # 07, 08
    "the certificate it has": "Is this certificate there already? Then there is nothing to do.",
    "the new certificate": (
        "Certificate and private key go to the service, in the body of a call over TLS: a server that is to "
        "speak for your name needs both."
    ),
    "read back": (
        "The call's answer only says that it was taken. So we ask until the service shows the certificate "
        "as its own."
    ),
    "TLS handshake": (
        "The service's word is one thing, and what a browser gets is another. We connect, say the name "
        "(SNI), and compare the serial number of the certificate that comes back."
    ),
    # 09 to 13
    "revokeCert": (
        "For a key that was stolen, or a name that you gave away. The CA publishes that the certificate is "
        "no longer good, and there is no way back. A certificate that is merely old is left to expire."
    ),
    "PFX for Windows Server": (
        "Windows takes key and certificates in one encrypted file, PKCS#12. Which encryption it can read "
        "depends on its age."
    ),
    "renewalInfo": (
        "The CA says when it would like this certificate renewed: sooner if it must revoke many, later if "
        "it is busy. Everyone picks a moment of their own in the window, so that not all come at once."
    ),
    "the key change of an earlier run": (
        "It broke off, and only the CA knows which key it has. So we ask with the new one."
    ),
    "keyChange": (
        "A JWS in a JWS. The inner one is signed with the new key and says which account and which old key; "
        "the outer one is signed with the old key. So whoever asks holds both."
    ),
    "account": "Is the account there, and do we still have its key?",
    "account, deactivated": "The account ends for good. Its certificates stay valid until they expire.",
    # Requests that belong to several of these steps.
    "badNonce": (
        "A nonce grows old, or the CA has forgotten it. That is no error of anybody's: the answer brings a "
        "new one, and the same request is signed again with it. (RFC 8555 section 6.5.)"
    ),
    "DescribeDomains": (
        "Which domains does this account have? The longest of them that the name ends with is the zone that "
        "the record goes into. A list of public suffixes would only guess."
    ),
    "AddDomainRecord": (
        "One more TXT value beside those that are there. RR is the name without its zone. The answer's "
        "RecordId goes to a journal on disk, so that the record can be taken back whatever happens."
    ),
    "DescribeDomainRecords": (
        "An earlier run did not hear the RecordId of a record that it made: we look for exactly its name "
        "and value."
    ),
}
