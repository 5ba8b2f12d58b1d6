"""common/jws.py against the vectors of RFC 7515, RFC 7638 and RFC 8555, and against another implementation."""

import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from joserfc import jws as other_jws
from joserfc.jwk import ECKey, OctKey, RSAKey

from common import jws, x509


def number(text: str) -> int:
    return int.from_bytes(jws.b64url_decode(text), "big")


# RFC 7515 appendix A.2: an RSA key, what is signed, and the signature.
RSA_N = (
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pC"
    "gNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg6"
    "65xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRW"
    "yuXpoQ"
)
RSA_D = (
    "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pW"
    "J1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2Qv"
    "Xt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRu"
    "OopznQ"
)
RSA_SIGNING_INPUT = (
    b"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0"
    b"cnVlfQ"
)
RSA_SIGNATURE = (
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t"
    "1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12j"
    "zDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQ"
    "Ge77Rw"
)
# RFC 7638 section 3.1: an RSA public key and its thumbprint.
THUMBPRINT_N = (
    "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj"
    "hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ"
    "vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzK"
    "nqDKgw"
)
# RFC 7515 appendix A.3: a P-256 key.
EC_X, EC_Y = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
EC_D = "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI"


def rfc_rsa_key() -> rsa.RSAPrivateKey:
    n, e, d = number(RSA_N), 65537, number(RSA_D)
    p, q = rsa.rsa_recover_prime_factors(n, e, d)
    return rsa.RSAPrivateNumbers(
        p, q, d, d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(e, n)
    ).private_key()


def rfc_ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(number(EC_D), ec.SECP256R1())


def test_rs256_signature_is_that_of_rfc_7515_appendix_a2():
    signature = jws.signature(rfc_rsa_key(), RSA_SIGNING_INPUT)
    assert jws.b64url(signature) == RSA_SIGNATURE


def test_jwk_of_an_ec_key_is_that_of_rfc_7515_appendix_a3():
    assert jws.jwk(rfc_ec_key()) == {"crv": "P-256", "kty": "EC", "x": EC_X, "y": EC_Y}


def test_jwk_of_an_rsa_key_is_that_of_rfc_7515_appendix_a2():
    assert jws.jwk(rfc_rsa_key()) == {"e": "AQAB", "kty": "RSA", "n": RSA_N}


def test_es256_signature_is_r_and_s_side_by_side():
    key = rfc_ec_key()
    signature = jws.signature(key, b"header.payload")
    assert len(signature) == 64
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.public_key().verify(encode_dss_signature(r, s), b"header.payload", ec.ECDSA(hashes.SHA256()))


def test_thumbprint_is_that_of_rfc_7638_section_3_1():
    assert (
        jws.jwk_thumbprint({"kty": "RSA", "n": THUMBPRINT_N, "e": "AQAB"})
        == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    )


def test_coordinates_with_leading_zeros_keep_the_length_of_the_curve():
    # RFC 7518 section 6.2.1.2; one key in 256 has such a coordinate. This one is made to have it.
    for secret in range(1, 2000):
        key = ec.derive_private_key(secret, ec.SECP256R1())
        if key.public_key().public_numbers().x >> 248 == 0:
            break
    assert len(jws.b64url_decode(jws.jwk(key)["x"])) == 32


@pytest.mark.parametrize("length", range(5))
def test_base64url_has_no_padding_and_comes_back(length: int):
    data = b"\xff\xfe\xfd\xfc\xfb"[:length]
    text = jws.b64url(data)
    assert not set(text) & set("+/=")
    assert jws.b64url_decode(text) == data


def test_base64url_refuses_what_is_none():
    with pytest.raises(ValueError):
        jws.b64url_decode("not base64url!")


@pytest.mark.parametrize(
    ("key_type", "algorithm"), [("ec256", "ES256"), ("ec384", "ES384"), ("rsa2048", "RS256")]
)
def test_another_implementation_accepts_a_whole_jws(key_type: str, algorithm: str):
    key = x509.new_private_key(key_type)
    protected = {"alg": jws.algorithm(key), "nonce": "a-nonce", "url": "https://ca.example/new-order"}
    signed = jws.sign(key, protected, {"identifiers": []})

    other_key = (RSAKey if algorithm == "RS256" else ECKey).import_key(jws.jwk(key))
    registry = other_jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    parsed = other_jws.deserialize_json(signed, other_key, registry=registry)
    assert parsed.payload == b'{"identifiers": []}'
    assert parsed.headers() == protected


def test_another_implementation_accepts_an_external_account_binding():
    hmac_key = b"0123456789abcdef0123456789abcdef"
    protected = {"alg": "HS256", "kid": "key-1", "url": "https://ca.example/new-account"}
    signed = jws.sign_hmac(hmac_key, protected, {"kty": "EC"})

    registry = other_jws.JWSRegistry(algorithms=["HS256"], strict_check_header=False)
    parsed = other_jws.deserialize_json(signed, OctKey.import_key(hmac_key), registry=registry)
    assert json.loads(parsed.payload) == {"kty": "EC"}


def test_post_as_get_has_an_empty_payload():
    signed = jws.sign(x509.new_private_key("ec256"), {"alg": "ES256"}, None)
    assert signed["payload"] == ""


def test_an_empty_object_is_not_an_empty_payload():
    signed = jws.sign(x509.new_private_key("ec256"), {"alg": "ES256"}, {})
    assert signed["payload"] == "e30"


def test_a_curve_that_no_ca_takes_is_refused():
    with pytest.raises(ValueError, match="secp521r1"):
        jws.algorithm(ec.generate_private_key(ec.SECP521R1()))
