"""How the models that come with Lorascope are made: ``python -m models.pretrain``. Not part of the installed package.

``corpus`` is what they read, ``pretrain`` the training, ``loss`` what it lowers, ``checkpoint`` what it keeps to go on
exactly, ``scores`` what they have learned, ``card`` what is told of them.
"""
